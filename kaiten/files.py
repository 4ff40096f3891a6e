"""Files that hold state, and how many a process may have open."""

import errno
import os
import resource
import secrets
from pathlib import Path

# For the connections, models, logs and metrics of one process.
ENOUGH_DESCRIPTORS = 1024
_MOST_DESCRIPTORS = 65_536
# A disk that is full, or whose quota is.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


def replace(path: Path, content: str | bytes, mode: int = 0o666) -> None:
    """Replace a file whole, on the disk before anybody can see it: never half of it is there.

    ``mode`` is less what the umask takes away: who writes and who reads need not be one user.
    """
    made = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        made.replace(path)
    except BaseException:
        made.unlink(missing_ok=True)
        raise


def has_no_room(error: OSError) -> bool:
    """Tell whether a disk or a quota is full, which passes, and not wrong."""
    return error.errno in _NO_ROOM


def is_out_of_descriptors(error: Exception) -> bool:
    """Tell whether this process, or the system, may open no more files and connections."""
    return isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}


def descriptor_limit() -> int:
    """Return how many files and connections a process that is started here may have open."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)


def raise_descriptor_limit() -> int:
    """Let this process, and those that it starts, open as many as they may; return how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = descriptor_limit()
    if soft == resource.RLIM_INFINITY or soft >= limit:
        return limit
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    except (ValueError, OSError):
        # Some systems permit less than they say.
        return soft
    return limit
