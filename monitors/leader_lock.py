"""A lock that makes one of a host's processes the leader: the one that holds a file's lock."""

from pathlib import Path

from filelock import FileLock, Timeout


class LeaderLock:
    """The lock of a file, for any thread of this process.

    The kernel releases the lock of a process that is killed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(path, blocking=False, thread_local=False)

    def acquire(self) -> bool:
        """Take the lock if it is free; return whether this process holds it."""
        if not self._lock.is_locked:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout:
                return False
        return True

    def release(self) -> None:
        """Leave the lock to another process."""
        self._lock.release()
