"""The ready workers of a server, by locks on a file that all of them inherit."""

import asyncio
import sys
from collections.abc import Callable

from kaiten.settings.snapshot import inherited_snapshot, memory_file

if sys.platform != "win32":
    # Commands other than `kaiten serve` run on Windows too.
    import fcntl

_POLL_S = 1.0


class Roster:
    """The ready workers of a server.

    Each ready worker locks its own byte of the inherited file. The kernel releases the lock when
    the process ends, however it ends.
    """

    def __init__(self, descriptor: int, workers: int, worker: int) -> None:
        self.workers = workers
        self._file = descriptor
        self._worker = worker
        self._ready = False

    async def publish(self, is_ready: Callable[[], bool]) -> None:
        """Keep this worker's entry up to date until cancelled."""
        while True:
            self.set_ready(ready=is_ready())
            await asyncio.sleep(_POLL_S)

    def set_ready(self, *, ready: bool) -> None:
        """Record whether this worker is ready.

        A reader that holds the byte for a moment makes this fail, so the caller repeats it.
        """
        if ready and not self._ready:
            self._ready = self._lock(self._worker, shared=False)
        elif self._ready and not ready:
            self._ready = False
            self._unlock(self._worker)

    def count_ready(self) -> int:
        """Return how many workers are ready now."""
        # The supervisor numbers restarted workers up to twice as high.
        others = (other for other in range(2 * self.workers) if other != self._worker)
        return self._ready + sum(self._is_held(other) for other in others)

    def _is_held(self, worker: int) -> bool:
        # Shared, so that two concurrent readers do not take each other for the owner.
        if not self._lock(worker, shared=True):
            return True
        self._unlock(worker)
        return False

    def _lock(self, worker: int, *, shared: bool) -> bool:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.lockf(self._file, kind | fcntl.LOCK_NB, 1, worker)
        except BlockingIOError:
            return False
        return True

    def _unlock(self, worker: int) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, worker)


def open_roster(worker: int) -> Roster:
    """Return the roster of this server's workers for one of them, numbered from 0."""
    snapshot = inherited_snapshot()
    if snapshot is None:
        return Roster(memory_file(), 1, worker)
    return Roster(snapshot.roster, snapshot.workers, worker)
