"""What git says of a checkout."""

import subprocess
from pathlib import Path


def git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, None where it fails or is not installed."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  ours
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
