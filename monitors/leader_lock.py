"""Which of a host's processes does what only one is to do: the one that holds a file's lock."""

from pathlib import Path

from filelock import FileLock, Timeout


def keeper(path: Path) -> FileLock:
    """Return the lock of a file, which is not taken yet; any thread of this process may."""
    return FileLock(path, blocking=False, thread_local=False)


def keeps(lock: FileLock) -> bool:
    """Return whether this process holds a lock, which it takes if nobody does.

    The kernel frees the lock of a process that is killed.
    """
    if not lock.is_locked:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            return False
    return True
