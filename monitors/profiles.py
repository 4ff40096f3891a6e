"""whylogs profiles of what was answered, per model version.

Records wait in a bounded queue; a side thread tracks them in columns and writes a profile once a
window and at shutdown. The request path pays for one append to the queue.
"""

import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from kaiten import tags
from kaiten.records import PredictionRecord
from kaiten.sections import Drift, Profiles

if TYPE_CHECKING:
    from monitors.tracking import ModelProfile

logger = structlog.get_logger(__name__)
_CHUNK_RECORDS = 2000
_POLL_SECONDS = 1.0


class Profiler:
    """Profiles records in a thread of its own, from start to close."""

    def __init__(
        self,
        folder: Path,
        settings: Profiles,
        drift: Drift,
        on_drop: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._window_s = drift.window_s
        self._on_drop = on_drop
        self._clock = clock
        self._pending: deque[PredictionRecord] = deque()
        self._profiles: dict[str, ModelProfile] = {}
        self._window_ends = clock() + self._window_s
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
        """Profile what waits, write every profile, and stop."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(_POLL_SECONDS):
            self.step()
        self.step()
        self._write()

    def step(self) -> None:
        """Take one turn: track what waits, and write if the window has ended.

        A failure costs profiles, and no more.
        """
        while self._pending:
            count = min(len(self._pending), _CHUNK_RECORDS)
            records = [self._pending.popleft() for _ in range(count)]
            try:
                self._track(records)
            except Exception:
                logger.exception("profiling_failed")
                self._on_drop(len(records))
        if self._clock() >= self._window_ends:
            self._window_ends = self._clock() + self._window_s
            self._write()

    def _track(self, records: Sequence[PredictionRecord]) -> None:
        # Here, so that only this thread waits for the import, and only where there are records.
        from monitors.tracking import ModelProfile  # noqa: PLC0415

        by_model: dict[str, list[PredictionRecord]] = defaultdict(list)
        for record in records:
            by_model[record.model].append(record)
        for model, own in by_model.items():
            if model not in self._profiles:
                self._profiles[model] = ModelProfile()
            self._profiles[model].track(own)

    def _write(self) -> None:
        """Write each profile to <folder>/<name>/<version>/<start>-<process>.bin, and forget it.

        One that can not be written goes on into the next window.
        """
        for model, profile in [*self._profiles.items()]:
            try:
                self._write_one(model, profile)
            except Exception:
                logger.exception("profile_not_written", model=model)
            else:
                del self._profiles[model]

    def _write_one(self, model: str, profile: "ModelProfile") -> None:
        folder = self._folder.joinpath(*tags.split(model))
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{profile.started_at:%Y%m%dT%H%M%S.%fZ}-{os.getpid()}.bin"
        partial = target.with_suffix(".partial")
        profile.write(partial)
        partial.replace(target)
        logger.info("profile_written", model=model, path=str(target))
