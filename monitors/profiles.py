"""Profiles of what was answered, beside the request path.

Records wait in a bounded queue, and the request path pays for one append to it. A side thread puts
them into the spool about once a second; that of one worker of a host, whichever holds the lock,
closes the windows that they fill. The kernel takes the lock from a worker that is killed.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import structlog
from filelock import FileLock, Timeout

from kaiten.records import PredictionRecord
from kaiten.sections import Drift, Profiles
from monitors.spool import Spool
from monitors.windows import Window, ended

logger = structlog.get_logger(__name__)
_TURN_S = 1.0
_LOCK_FILE = "watch.lock"


class Watch(Protocol):
    """Judges the windows of a host."""

    def close(self, window: Window) -> None:
        """Keep and judge a window; its parts are removed afterwards."""


class Profiler:
    """Profiles records in a thread of its own, from start to close.

    ``watch`` is asked for where this worker is the one that closes windows and there is one to
    close: what it is made of takes memory.
    """

    def __init__(
        self,
        folder: Path,
        settings: Profiles,
        drift: Drift,
        watch: Callable[[], Watch],
        on_drop: Callable[[int], None],
        tenant_of: Callable[[str], str] = lambda _: "",
    ) -> None:
        self._settings = settings
        self._drift = drift
        self._watch = watch
        self._on_drop = on_drop
        self._tenant_of = tenant_of
        self._spool = Spool(folder / "spool")
        self._lock = FileLock(folder / _LOCK_FILE, blocking=False, thread_local=False)
        self._pending: deque[PredictionRecord] = deque()
        self._failing = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="profiler", daemon=True)

    def start(self) -> None:
        """Start the side thread."""
        self._thread.start()

    def put(self, records: Sequence[PredictionRecord]) -> None:
        """Keep records for profiling; what does not fit is counted as dropped."""
        room = max(0, self._settings.max_pending_records - len(self._pending))
        self._pending.extend(records[:room])
        if len(records) > room:
            self._on_drop(len(records) - room)

    def close(self) -> None:
        """Put what waits into the spool, and stop."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self._spool_pending()
        self._lock.release()

    def _run(self) -> None:
        while not self._closing.wait(_TURN_S):
            self.step()

    def step(self) -> None:
        """Take one turn: spool what waits, and close the windows that have ended, if that is ours.

        A failure costs profiles, and no more.
        """
        self._spool_pending()
        try:
            if self._holds_the_lock():
                self._close_windows()
            self._failing = False
        except Exception:
            # Once, and not with every turn.
            if not self._failing:
                logger.exception("windows_not_looked_at")
            self._failing = True

    def _spool_pending(self) -> None:
        records = [self._pending.popleft() for _ in range(len(self._pending))]
        if not records:
            return
        try:
            self._spool.put(records, self._tenant_of)
        except Exception:
            logger.exception("profiling_failed")
            self._on_drop(len(records))

    def _holds_the_lock(self) -> bool:
        if not self._lock.is_locked:
            self._lock_folder().mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout:
                return False
        return True

    def _close_windows(self) -> None:
        for window in ended(self._spool, self._drift):
            try:
                self._watch().close(window)
            except Exception:
                logger.exception("window_not_judged", model=window.source.model)
                self._on_drop(window.rows)
            # One that fails would fail again, and hold up all after it.
            self._spool.forget(window.parts)
            if self._closing.is_set():
                return

    def _lock_folder(self) -> Path:
        return Path(self._lock.lock_file).parent
