"""Runs the programs that build bentos and images."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from kaiten.errors import BuildRefused

_MAX_LINES = 15


def run_command(
    command: Sequence[str],
    refusal: str,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> str:
    """Return what a command prints.

    Raises:
        BuildRefused: The command fails; the message is ``refusal`` and its last lines.

    """
    completed = subprocess.run(  # noqa: S603  our own command
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    if completed.returncode:
        lines = (completed.stdout + completed.stderr).strip().splitlines()[-_MAX_LINES:]
        raise BuildRefused("\n".join([f"{refusal}:", *lines]))
    return completed.stdout
