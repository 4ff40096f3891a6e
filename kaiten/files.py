"""Atomic writes of state files, and the limit of open files."""

import errno
import os
import secrets
import sys
from pathlib import Path

if sys.platform != "win32":
    import resource

# Enough for the connections, models, logs and metrics of one process.
ENOUGH_DESCRIPTORS = 1024
_MAX_DESCRIPTORS = 65_536
# A full disk or an exhausted quota.
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


def replace_file(path: Path, content: str | bytes, mode: int = 0o666) -> None:
    """Replace a file atomically: it is on the disk before a reader can see any part of it.

    The umask applies to ``mode``, as the writer and the readers may be different users.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_disk_full(error: OSError) -> bool:
    """Return whether a disk or a quota is full, which is temporary, unlike other errors."""
    return error.errno in _DISK_FULL


def is_out_of_descriptors(error: Exception) -> bool:
    """Return whether this process or the system cannot open more files and connections."""
    return isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}


def descriptor_limit() -> int:
    """Return how many files and connections a process started from here may have open."""
    if sys.platform == "win32":
        # Sockets do not count there, and files have no limit that a process inherits.
        return _MAX_DESCRIPTORS
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)


def raise_descriptor_limit() -> int:
    """Raise the limit of this process and its children as far as allowed, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = descriptor_limit()
    if soft == resource.RLIM_INFINITY or soft >= limit:
        return limit
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    except (ValueError, OSError):
        # Some systems permit less than the hard limit.
        return soft
    return limit
