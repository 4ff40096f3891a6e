"""The commands that build for us."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from kaiten.errors import BuildRefused

_TOLD_LINES = 15


def run(
    command: Sequence[str],
    refusal: str,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> str:
    """Return what a command prints; BuildRefused, with its last lines, where it fails."""
    done = subprocess.run(  # noqa: S603  ours
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        told = (done.stdout + done.stderr).strip().splitlines()[-_TOLD_LINES:]
        raise BuildRefused("\n".join([f"{refusal}:", *told]))
    return done.stdout
