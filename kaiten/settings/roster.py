"""The workers of a server, by a file that all of them inherit: which are ready, and how loaded."""

import asyncio
import os
import struct
import sys
from collections.abc import Callable, Iterator

from kaiten.settings.snapshot import inherited_snapshot, memory_file

if sys.platform != "win32":
    # Commands other than `kaiten serve` run on Windows too.
    import fcntl

_POLL_S = 1.0
_COUNT = struct.Struct("=I")
# A worker has its share of the connections if it has at most this part more than another.
_TOLERATED_PART = 1 / 8


class Roster:
    """The ready workers of a server, and the connections that each of them has.

    Each ready worker locks its own byte of the inherited file. The kernel releases the lock when
    the process ends, however it ends. The file's content is a number for each worker, that of its
    connections.
    """

    def __init__(self, descriptor: int, workers: int, worker: int) -> None:
        self.workers = workers
        self._file = descriptor
        self._worker = worker
        self.ready = False
        self.count = 0
        self._write_count()

    async def publish(self, is_ready: Callable[[], bool]) -> None:
        """Keep this worker's entry up to date until cancelled."""
        while True:
            self.set_ready(ready=is_ready())
            await asyncio.sleep(_POLL_S)

    def set_ready(self, *, ready: bool) -> None:
        """Record whether this worker is ready.

        A reader that holds the byte for a moment makes this fail, so the caller repeats it.
        """
        if ready and not self.ready:
            self.ready = self._lock(self._worker, shared=False)
        elif self.ready and not ready:
            self.ready = False
            self._unlock(self._worker)

    def count_ready(self) -> int:
        """Return how many workers are ready now."""
        return self.ready + sum(self._is_held(other) for other in self._others)

    def opened(self) -> None:
        """Count a connection of this worker."""
        self.count += 1
        self._write_count()

    def closed(self) -> None:
        """Count a connection of this worker no more."""
        self.count -= 1
        self._write_count()

    def another_has_room(self) -> bool:
        """Whether a new connection suits another ready worker better than this one.

        That is one with fewer connections, or any if this worker is not ready.
        """
        if self.workers == 1:
            return False
        content = os.pread(self._file, 2 * self.workers * _COUNT.size, 0)
        counts = [count for (count,) in _COUNT.iter_unpack(content)]
        for other in self._others:
            count = counts[other] if other < len(counts) else 0
            fewer = self.count > count * (1 + _TOLERATED_PART)
            if (fewer or not self.ready) and self._is_held(other):
                return True
        return False

    @property
    def _others(self) -> Iterator[int]:
        # The supervisor numbers restarted workers up to twice as high.
        return (other for other in range(2 * self.workers) if other != self._worker)

    def _write_count(self) -> None:
        os.pwrite(self._file, _COUNT.pack(self.count), self._worker * _COUNT.size)

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
