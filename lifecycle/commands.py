"""Runs other programs: git, and those that build bentos and images."""

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


def run_git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, None if it fails or is not installed."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        completed = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  our own command
    except FileNotFoundError:
        return None
    return completed.stdout.strip() if completed.returncode == 0 else None
