"""Joins labels, updates the metrics of quality and prunes: in one worker of each host."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import structlog

from kaiten.errors import DatabaseUnavailable
from kaiten.feedback import VersionQuality
from monitors.feedback.labels import WAIT_S, Labels
from monitors.feedback.retention import Pruner
from monitors.feedback.windows import QualityWindows
from monitors.leader_lock import LeaderLock

logger = structlog.get_logger(__name__)
POLL_S = 3.0
_PRUNE_S = 60.0
_RECENT_S = 60.0
_CLOSE_TIMEOUT_S = 10.0
_LARGE_WAL_BYTES = 64 << 20
LOCK_FILE = "quality.lock"


class FeedbackMetrics(Protocol):
    """The metrics of predictions, labels and quality."""

    def feedback_events_dropped(self, count: int) -> None:
        """Count predictions that were not written."""

    def quality_measured(self, versions: Sequence[VersionQuality]) -> None:
        """Set the gauges of these versions, and remove those of all others."""

    def labels_received(self, outcome: str, count: int) -> None:
        """Count labels by outcome."""

    def database_unavailable(self, *, unavailable: bool) -> None:
        """Set whether the database is unavailable or accepts no writes."""

    def database_wal(self, size_bytes: int) -> None:
        """Set the size of SQLite's write-ahead log."""


class FeedbackJob:
    """A thread that measures whenever predictions or labels have changed, from start to close.

    Of a host's workers, only the one that holds the lock works. The lock is released when that
    worker ends, however it ends.
    """

    def __init__(
        self,
        home: Path,
        labels: Labels,
        windows: QualityWindows,
        pruner: Pruner,
        metrics: FeedbackMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._lock = LeaderLock(home / LOCK_FILE)
        self._database = labels.database
        self._wal_is_large = False
        self._labels = labels
        self._windows = windows
        self._pruner = pruner
        self._metrics = metrics
        self._clock = clock
        self._prune_at = clock()
        self._seen: tuple[int, float] | None = None
        self._failing = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="quality-watch", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; close waits for it."""
        self._closing.set()

    def close(self) -> None:
        """Stop, and release the lock to another worker."""
        self.stop()
        if self._thread.is_alive():
            # With a timeout, because the database may hang.
            self._thread.join(_CLOSE_TIMEOUT_S)
        self._lock.release()

    def step(self) -> bool:
        """Do one round of work if this worker is the leader; return whether it is."""
        try:
            if not self._lock.acquire():
                return False
            self._run_round()
            self._failing = False
            self._metrics.database_unavailable(unavailable=False)
        except DatabaseUnavailable:
            self._metrics.database_unavailable(unavailable=True)
            # The database has logged it; the gauges keep their values.
            self._seen = None
        except Exception:
            # Logged once, until a round succeeds.
            if not self._failing:
                logger.exception("quality_not_measured")
            self._seen, self._failing = None, True
        return True

    def _measure_wal(self) -> None:
        """Report the size of SQLite's write-ahead log, and log one that a reader keeps growing."""
        size = self._database.wal_bytes
        self._metrics.database_wal(size)
        if size > _LARGE_WAL_BYTES and not self._wal_is_large:
            logger.warning("database_wal_large", bytes=size)
        self._wal_is_large = size > _LARGE_WAL_BYTES

    def _run(self) -> None:
        while not self._closing.wait(POLL_S):
            self.step()

    def _run_round(self) -> None:
        now = self._clock()
        # Reading works even while another process has locked the file.
        self._database.check_writable()
        self._measure_wal()
        # Most predictions come within seconds, so older labels are looked up less often.
        joined = self._labels.join_waiting(WAIT_S if now >= self._prune_at else _RECENT_S)
        self._metrics.labels_received("joined_later", joined)
        mark = self._windows.mark()
        # Also once a minute: another host may have joined labels, or its clock may be behind.
        if joined or mark != self._seen or now >= self._prune_at:
            self._metrics.quality_measured(self._windows.read())
            self._seen = mark
        if now >= self._prune_at:
            self._prune_at = now + _PRUNE_S
            if deleted := self._pruner.prune(now):
                logger.info("quality_pruned", rows=deleted)
