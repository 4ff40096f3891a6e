"""Runs git on a checkout."""

import subprocess
from pathlib import Path


def run_git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, None if it fails or is not installed."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        completed = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  our own command
    except FileNotFoundError:
        return None
    return completed.stdout.strip() if completed.returncode == 0 else None
