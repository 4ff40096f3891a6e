"""kaiten-host.sh on a host whose programs only record calls; tests/e2e runs it with real ones."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from kaiten.settings.environment import ROOT

SYSTEMD = ROOT / "deploy" / "systemd"
PROFILE = ROOT / "deploy" / "nginx" / "kaiten.conf"
GREEN_URL = "http://127.0.0.1:3002"
# Writes its calls down, and fails at those that contain a line of FAIL.
FAKE = """#!/bin/bash
call="${0##*/} $*"
echo "$call" >> "$CALLS"
while read -r part; do
    [[ -n $part && $call == *"$part"* ]] && exit 1
done <<< "$FAIL"
:
"""
PROGRAMS = {
    "systemctl": 'echo "active"\n',
    "curl": "",
    "sleep": "",
    # A reload starts workers, unless nginx rejects the new configuration in its log only.
    "nginx": """\
[[ "$*" == "-s reload" && -z $IGNORES_RELOAD ]] || exit 0
echo "$(($(tail -n 1 "$WORKERS") + 1))" > "$WORKERS"
""",
    "pgrep": 'cat "$WORKERS"\n',
    "runuser": 'shift 3\nexec "$@"\n',
    "python": """\
echo "  with PYTHONPATH=$PYTHONPATH BENTO=$BENTO KAITEN_HOME=$KAITEN_HOME in $PWD" >> "$CALLS"
[[ $* != *"--token-file -"* ]] || echo "  reads $(cat)" >> "$CALLS"
""",
}


@dataclass(frozen=True)
class Host:
    """A host with the shipped files, on which nginx reaches blue."""

    root: Path

    @property
    def etc(self) -> Path:
        return self.root / "etc"

    @property
    def profile(self) -> Path:
        return self.root / "kaiten.conf"

    @property
    def calls(self) -> list[str]:
        """The calls that change something or decide on it."""
        file = self.root / "calls"
        lines = file.read_text("utf-8").splitlines() if file.exists() else []
        return [line for line in lines if not line.startswith(("pgrep", "runuser", "sleep", "  "))]

    @property
    def details(self) -> list[str]:
        lines = (self.root / "calls").read_text("utf-8").splitlines()
        return [line.strip() for line in lines if line.startswith("  ")]

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
            "CALLS": str(self.root / "calls"),
            "WORKERS": str(self.root / "workers"),
            "HOST_ETC": str(self.etc),
            "HOST_OPT": str(self.root / "opt"),
            "NGINX_PROFILE": str(self.profile),
            "NGINX_PID": str(self.root / "nginx.pid"),
            "FAIL": "",
            "IGNORES_RELOAD": "",
            **variables,
        }
        command = [str(SYSTEMD / "kaiten-host.sh"), *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=60
        )


def point(profile: Path, port: int) -> None:
    """Let nginx's profile name another port than the one that it names."""
    text = profile.read_text("utf-8")
    for other in (3000, 3001, 3002):
        text = text.replace(f"server 127.0.0.1:{other};", f"server 127.0.0.1:{port};")
    profile.write_text(text, "utf-8")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    host.etc.mkdir()
    for file in SYSTEMD.glob("*.env"):
        text = file.read_text("utf-8").replace("/var/lib/kaiten", str(tmp_path / "home"))
        (host.etc / file.name).write_text(text.replace(":VERSION", f":of-{file.stem}"), "utf-8")
    for name in ("blue", "green"):
        (tmp_path / "home/bentoml/bentos/kaiten_service" / f"of-{name}").mkdir(parents=True)
    shutil.copy(PROFILE, host.profile)
    point(host.profile, 3001)
    (tmp_path / "nginx.pid").write_text("1\n")
    (tmp_path / "workers").write_text("99999990\n99999991\n")
    folders = {"python": [tmp_path / "opt" / name / "bin" for name in ("blue", "green")]}
    for name, body in PROGRAMS.items():
        for folder in folders.get(name, [tmp_path / "bin"]):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(FAKE + body, "utf-8")
            (folder / name).chmod(0o755)
    return host


def test_instance_is_examined_started_tested_and_reached_before_the_other_stops(host: Host) -> None:
    done = host.run("switch", "green")
    assert done.returncode == 0, done.stderr
    assert "kaiten@green serves kaiten_service:of-green. To go back:" in done.stderr
    assert host.calls == [
        "nginx -t -q",
        "python -P -m cli doctor kaiten_service:of-green",
        "systemctl restart kaiten@green",
        f"curl --silent --fail --noproxy * --max-time 5 --output /dev/null {GREEN_URL}/readyz",
        f"python -P -m cli smoke {GREEN_URL}",
        "nginx -t -q",
        "nginx -s reload",
        "systemctl enable --quiet kaiten@green",
        "systemctl disable --quiet kaiten@blue",
        "systemctl stop kaiten@blue",
    ]
    home = host.root / "home"
    source = home / "bentoml/bentos/kaiten_service/of-green/src"
    variables = f"PYTHONPATH={source} BENTO=kaiten_service:of-green KAITEN_HOME={home}"
    assert {*host.details} == {f"with {variables} in {home}"}


def test_only_the_port_of_the_upstream_changes_and_the_way_back_restores_it(host: Host) -> None:
    before = host.profile.read_text("utf-8")
    assert host.run("switch", "green").returncode == 0
    assert host.profile.read_text("utf-8") == before.replace(":3001;", ":3002;", 1)
    assert host.run("switch", "blue").returncode == 0
    assert host.profile.read_text("utf-8") == before
    assert host.calls[-1] == "systemctl stop kaiten@green"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"FAIL": "systemctl restart"}, ""),
        ({"FAIL": "curl\nis-active"}, "kaiten@green has ended: journalctl"),
        ({"FAIL": "curl", "READY_TIMEOUT_S": "0"}, "was not ready within 0 s"),
        ({"FAIL": "cli smoke"}, ""),
        ({"FAIL": "nginx -s reload"}, ""),
        ({"IGNORES_RELOAD": "yes"}, "nginx has not read its configuration again"),
    ],
    ids=str,
)
def test_instance_that_fails_is_stopped_and_the_other_one_serves_as_before(
    host: Host, variables: Mapping[str, str], message: str
) -> None:
    before = host.profile.read_text("utf-8")
    done = host.run("switch", "green", **variables)
    assert done.returncode == 1
    assert message in done.stderr
    assert "kaiten@green is stopped. kaiten@blue serves as before." in done.stderr
    assert host.profile.read_text("utf-8") == before
    stops = [
        call for call in host.calls if call.startswith(("systemctl stop", "systemctl disable"))
    ]
    assert stops == ["systemctl stop kaiten@green"]


def remove_green(host: Host) -> None:
    (host.etc / "green.env").unlink()


def remove_port(host: Host) -> None:
    (host.etc / "green.env").write_text("BENTO=kaiten_service:latest\n")


def remove_bento(host: Host) -> None:
    (host.root / "home/bentoml/bentos/kaiten_service/of-green").rmdir()


def remove_environment(host: Host) -> None:
    shutil.rmtree(host.root / "opt" / "green")


def name_a_host(host: Host) -> None:
    text = host.profile.read_text("utf-8")
    host.profile.write_text(text.replace("server 127.0.0.1:3001;", "server kaiten.internal:3001;"))


@pytest.mark.parametrize(
    ("arguments", "failing_call", "change", "message"),
    [
        (("switch", "red"), "", None, "kaiten-host switch blue|green"),
        (("switch",), "", None, "kaiten-host switch blue|green"),
        ((), "", None, "kaiten-host run COMMAND"),
        (("run",), "", None, "kaiten-host run COMMAND"),
        (("switch", "blue"), "", None, "blue serves already"),
        (("switch", "green"), "nginx -t", None, "correct it first"),
        (("switch", "green"), "cli doctor", None, "kaiten_service:of-green would not start"),
        (("switch", "green"), "", remove_green, "green.env; docs/deploy.md has the installation"),
        (("switch", "green"), "", remove_port, "green.env has no PORT"),
        (
            ("switch", "green"),
            "",
            remove_bento,
            "green.env names the bento kaiten_service:of-green",
        ),
        (("switch", "green"), "", remove_environment, "opt/green/bin/python with its packages"),
        (("switch", "green"), "", name_a_host, "has no line 'server 127.0.0.1:PORT;'"),
    ],
)
def test_refusal_changes_nothing(
    host: Host, arguments: tuple[str, ...], failing_call: str, change: object, message: str
) -> None:
    if callable(change):
        change(host)
    before = host.profile.read_text("utf-8")
    done = host.run(*arguments, FAIL=failing_call)
    assert done.returncode == 2
    assert message in done.stderr
    assert not [call for call in host.calls if call.startswith(("systemctl", "nginx -s"))]
    assert host.profile.read_text("utf-8") == before


def test_two_switches_at_once_are_refused(host: Host) -> None:
    folder = os.open(host.etc, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    done = host.run("switch", "green")
    os.close(folder)
    assert done.returncode == 2
    assert "another switch is running" in done.stderr
    assert host.calls == []


def test_first_instance_has_no_other_to_stop(host: Host) -> None:
    point(host.profile, 3000)
    done = host.run("switch", "blue")
    assert done.returncode == 0, done.stderr
    assert "server 127.0.0.1:3001;" in host.profile.read_text("utf-8")
    assert host.calls[-1] == "systemctl enable --quiet kaiten@blue"


def test_token_of_another_issuer_can_be_given(host: Host, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("of-another", "utf-8")
    assert host.run("switch", "green", TOKEN_FILE=str(token)).returncode == 0
    assert f"python -P -m cli smoke {GREEN_URL} --token-file -" in host.calls
    assert "reads of-another" in host.details


def test_command_runs_with_the_environment_of_the_serving_instance(host: Host) -> None:
    create = ("run", "token", "create", "--subject", "two words")
    assert host.run(*create).returncode == 0
    assert host.calls == ["python -P -m cli token create --subject two words"]
    assert " BENTO=kaiten_service:of-blue " in host.details[-1]
    assert host.run(*create, INSTANCE="green").returncode == 0
    assert " BENTO=kaiten_service:of-green " in host.details[-1]
    point(host.profile, 3000)
    done = host.run(*create)
    assert (done.returncode, "set INSTANCE to blue or green" in done.stderr) == (2, True)


def test_status_shows_which_instance_nginx_reaches(host: Host) -> None:
    assert host.run("status").stdout.splitlines() == [
        "blue   active    port 3001  kaiten_service:of-blue  <- nginx",
        "green  active    port 3002  kaiten_service:of-green",
    ]
