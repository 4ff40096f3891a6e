"""Keeps the database in order, and the metrics of quality true: one worker of a host does."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import structlog

from kaiten.errors import DatabaseUnavailable
from kaiten.quality import VersionQuality
from monitors.keeping import keeper, keeps
from monitors.quality.labels import WAIT_S, Labels
from monitors.quality.pruning import Pruning
from monitors.quality.windows import Windows

logger = structlog.get_logger(__name__)
POLL_S = 3.0
_PRUNE_S = 60.0
_RECENT_S = 60.0
_END_S = 10.0
_LARGE_WAL_BYTES = 64 << 20
LOCK_FILE = "quality.lock"


class Gauges(Protocol):
    """Told of what was measured."""

    def quality_measured(self, found: Sequence[VersionQuality]) -> None:
        """Show it, and nothing of what is not there any more."""

    def labels_taken(self, outcome: str, count: int) -> None:
        """Count labels by what became of them."""

    def database_away(self, *, away: bool) -> None:
        """Show whether the database does not answer, or takes nothing."""

    def database_wal(self, size: int) -> None:
        """Show how many bytes SQLite's write-ahead log has."""


class QualityWatch:
    """A thread that measures whenever something has changed, from start to close.

    Of a host's workers, the one that holds the lock does it, until it ends, in whatever way.
    """

    def __init__(
        self,
        home: Path,
        labels: Labels,
        windows: Windows,
        pruning: Pruning,
        gauges: Gauges,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._lock = keeper(home / LOCK_FILE)
        self._database = labels.database
        self._wal_is_large = False
        self._labels = labels
        self._windows = windows
        self._pruning = pruning
        self._gauges = gauges
        self._clock = clock
        self._prune_at = clock()
        self._seen: tuple[int, float] | None = None
        self._failing = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="quality-watch", daemon=True)

    def start(self) -> None:
        """Start the side thread."""
        self._thread.start()

    def stop(self) -> None:
        """Begin to end; close waits for it."""
        self._closing.set()

    def close(self) -> None:
        """Stop, and leave the rest to another worker."""
        self.stop()
        if self._thread.is_alive():
            # No longer: a database may hang.
            self._thread.join(_END_S)
        self._lock.release()

    def step(self) -> bool:
        """Take one turn, if it is this worker's; a failure costs the turn, and no more."""
        try:
            if not keeps(self._lock):
                return False
            self._turn()
            self._failing = False
            self._gauges.database_away(away=False)
        except DatabaseUnavailable:
            self._gauges.database_away(away=True)
            # Told of by the database; what is shown stays.
            self._seen = None
        except Exception:
            # Told once, until it works again.
            if not self._failing:
                logger.exception("quality_not_measured")
            self._seen, self._failing = None, True
        return True

    def _show_wal(self) -> None:
        """Show SQLite's write-ahead log, and tell of one that a reader keeps from being emptied."""
        size = self._database.wal_bytes
        self._gauges.database_wal(size)
        if size > _LARGE_WAL_BYTES and not self._wal_is_large:
            logger.warning("database_wal_large", bytes=size)
        self._wal_is_large = size > _LARGE_WAL_BYTES

    def _run(self) -> None:
        while not self._closing.wait(POLL_S):
            self.step()

    def _turn(self) -> None:
        now = self._clock()
        # Reading goes on where another process has locked the file.
        self._database.check_writable()
        self._show_wal()
        # Most predictions come within seconds; a label that has none yet is looked at less often.
        joined = self._labels.join_waiting(WAIT_S if now >= self._prune_at else _RECENT_S)
        self._gauges.labels_taken("joined_later", joined)
        mark = self._windows.mark()
        # Once a minute anyway: another host may have joined some, or its clock be behind.
        if joined or mark != self._seen or now >= self._prune_at:
            self._gauges.quality_measured(self._windows.read())
            self._seen = mark
        if now >= self._prune_at:
            self._prune_at = now + _PRUNE_S
            if deleted := self._pruning.prune(now):
                logger.info("quality_pruned", rows=deleted)
