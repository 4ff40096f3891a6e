"""What a start warns of before it finds that it has no model to serve."""

import json
import subprocess
import sys
from pathlib import Path
from secrets import token_hex

import pytest

from gateway.auth.credential_stores import FILE
from kaiten.settings.environment import ROOT, environment_for
from tests.unit.gateway.house import Json

STATE = (FILE, "development.secret", "quality.sqlite", "profiles")
ISSUER = {"issuer": "them", "audience": "us", "jwks_url": "https://them.example/jwks"}
# Logging and BentoML's configuration belong to the whole process. The state of a checkout is in its
# own folder, so this one passes for an installation.
SCRIPT = """
from kaiten.errors import ModelNotFound
from kaiten.settings import environment

environment.is_checkout = lambda: False
import service
service.Kaiten.inject_config()
from server import preflight

try:
    preflight.prepare(service.settings, service.file)
except ModelNotFound as error:
    print(error.tag)
"""


def start(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Start in a folder, with an empty model store."""
    environment = {
        "BENTOML_HOME": str(folder / "bentoml"),
        "XDG_DATA_HOME": str(folder / "data"),
        "PYTHONPATH": str(ROOT),
        "KAITEN_FEEDBACK__ENABLED": "false",
        **variables,
    }
    return subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment_for(environment),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def start_events(folder: Path, **variables: str) -> dict[str, Json]:
    """Start as above; return the log entries by their events."""
    done = start(folder, **variables)
    assert done.stdout == "support-intent:1.0.0\n", done.stderr
    lines = (line for line in done.stderr.splitlines() if line.startswith("{"))
    return {entry["event"]: entry for entry in map(json.loads, lines)}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory in which an earlier version kept its state."""
    monkeypatch.delenv("KAITEN_HOME")
    (tmp_path / ".kaiten").mkdir()
    for name in STATE:
        (tmp_path / ".kaiten" / name).touch()
    return tmp_path


def test_what_callers_or_operators_lose_is_reported(project: Path) -> None:
    """A start without a key for pseudonyms, and with state that is not in force."""
    issuers = {"KAITEN_AUTH__ISSUERS": json.dumps([ISSUER])}
    losses = {"state_elsewhere", "pseudonyms_change_with_each_start"}
    events = start_events(project, **issuers)
    assert losses <= events.keys()
    assert events["state_elsewhere"]["remedy"].startswith(f"{', '.join(STATE)} in it are not")
    remedies = {
        "KAITEN_HOME": str(project / "home"),
        "KAITEN_LOGGING__PSEUDONYM_KEY": token_hex(32),
    }
    assert losses.isdisjoint(start_events(project, **issuers, **remedies))


def test_production_does_not_start_without_its_state_in_the_working_directory(
    project: Path,
) -> None:
    production = {"KAITEN_ENVIRONMENT": "production", "KAITEN_AUTH__SECRET": token_hex(32)}
    done = start(project, **production)
    assert done.returncode != 0
    assert f"are not in force: set KAITEN_HOME={project / '.kaiten'}, or move it" in done.stderr
    events = start_events(project, **production, KAITEN_HOME=str(project / "home"))
    assert "state_elsewhere" not in events
