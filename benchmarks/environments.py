"""An environment for each peer, made once from its requirements."""

import json
import re
import subprocess
from pathlib import Path

from benchmarks import places
from benchmarks.catalogue import Server
from benchmarks.servers import ServerFailed

_PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
_LIMIT_S = 1800
_ERROR_LINES = 6


def ensure(server: Server) -> dict[str, str]:
    """Install a peer unless it is there, and return the versions of what its requirements name.

    ServerFailed tells the last lines of the installation's error.
    """
    requirements = places.PEERS / server.name / "requirements.txt"
    folder = places.ENVIRONMENTS / server.name
    python, marker = folder / "venv" / "bin" / "python", folder / "installed.txt"
    requirements_text = requirements.read_text(encoding="utf-8")
    if not (marker.is_file() and marker.read_text(encoding="utf-8") == requirements_text):
        if not python.is_file():
            _run([server.python, "-m", "venv", str(folder / "venv")])
        # torch first, as a resolver that is free to choose brings whatever build is newest.
        torch = [line for line in requirements_text.splitlines() if line.startswith("torch==")]
        if torch:
            _run([str(python), *_PIP, *torch])
        _run([str(python), *_PIP, "-r", str(requirements)])
        places.write_text(marker, requirements_text)
    return _versions(python, requirements_text)


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command,
            env=places.environment(),
            cwd=places.HOME,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerFailed(f"Its installation did not work: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "WARNING" not in line]
        raise ServerFailed("Its installation failed.\n" + "\n".join(lines[-_ERROR_LINES:]))
    return done.stdout


def _versions(python: Path, requirements: str) -> dict[str, str]:
    listed = json.loads(_run([str(python), "-m", "pip", "list", "--format=json"]))
    named = {re.split(r"[^\w.-]", line)[0].lower() for line in requirements.splitlines()}
    return {row["name"]: row["version"] for row in listed if row["name"].lower() in named}
