"""Disks that are soon full: a tmpfs each, which only root can mount."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def mount_tmpfs(place: Path, size: str, inodes: int = 0) -> Iterator[Path]:
    """Mount a tmpfs of a size, and of so many inodes; CalledProcessError where that is refused."""
    place.mkdir(parents=True, exist_ok=True)
    options = f"size={size}" + (f",nr_inodes={inodes}" if inodes else "")
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield place
    finally:
        # Detached: a process that is about to end may still have files open.
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextmanager
def small_disk(place: Path, size: str, inodes: int = 0) -> Iterator[Path]:
    """Mount a tmpfs, or skip the test where this account cannot."""
    if os.getuid() != 0:
        pytest.skip("only root can mount a tmpfs to fill")
    try:
        with mount_tmpfs(place, size, inodes) as disk:
            yield disk
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no tmpfs can be mounted here: {error.stderr.decode().strip()}")


def fill(disk: Path) -> None:
    """Leave no byte on a disk."""
    with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass


def fill_inodes(disk: Path) -> None:
    """Leave room for no further file."""
    with suppress(OSError):
        for number in range(1 << 20):
            (disk / f"filler-{number}").touch()
