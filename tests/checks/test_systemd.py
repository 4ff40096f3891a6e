"""The units and environment files for one host agree with each other, the settings and nginx."""

import re
from pathlib import Path

import pytest

from kaiten.settings.environment import ROOT
from kaiten.settings.loader import load_settings

SYSTEMD = ROOT / "deploy" / "systemd"
UNIT = (SYSTEMD / "kaiten@.service").read_text("utf-8")
# What Kaiten needs after the last answer.
GRACE_S = 5


def value_of(directive: str) -> str:
    """Return what a directive says that stands there once."""
    (value,) = re.findall(rf"^{directive}=(.*)$", UNIT, re.MULTILINE)
    return str(value)


def variables_of(name: str) -> dict[str, str]:
    lines = (SYSTEMD / f"{name}.env").read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_environment_files_hold_every_variable_of_the_command() -> None:
    used = set(re.findall(r"\$\{(\w+)\}", value_of("ExecStart")))
    for instance in ("blue", "green"):
        assert used == variables_of(instance).keys()
    assert variables_of("blue")["PORT"] != variables_of("green")["PORT"]


def test_environment_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables_of("kaiten").items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.home == Path(value_of("WorkingDirectory"))
    assert value_of("StateDirectory") == settings.home.name
    # A stop waits for the drain and for the requests in progress.
    limit_s = settings.serving.drain_s + settings.serving.request_timeout_s + GRACE_S
    assert settings.serving.drain_s > 0
    assert int(value_of("TimeoutStopSec")) > limit_s


def test_server_listens_on_loopback_and_its_parent_alone_gets_the_signal() -> None:
    assert "--host 127.0.0.1" in value_of("ExecStart")
    assert value_of("KillMode") == "mixed"


def test_script_waits_for_longer_than_nginx_does() -> None:
    script = (SYSTEMD / "kaiten-host.sh").read_text("utf-8")
    (drain_s,) = re.findall(r"^drain_timeout_s=(\d+)$", script, re.MULTILINE)
    profile = (ROOT / "deploy" / "nginx" / "kaiten.conf").read_text("utf-8")
    (read_s,) = re.findall(r"proxy_read_timeout (\d+)s;", profile)
    assert int(drain_s) > int(read_s)
