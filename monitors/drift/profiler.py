"""Profiles answers beside the request path, and closes the windows that they fill.

Events wait in a bounded sample, and the request path pays for one append to it. About once a
second a thread measures their texts, drops them, and writes the measures into the spool. Of a
host's workers, the one that holds a model's lock closes the windows that its answers fill; the
kernel releases the lock of a worker that is killed.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from random import Random

import structlog

from kaiten import model_tags
from kaiten.events import PredictionEvent
from kaiten.settings.models import DriftSettings, ProfileSettings
from monitors.drift.features import measure
from monitors.drift.reservoir import Reservoir
from monitors.drift.spool import Source, Spool
from monitors.drift.windows import EndedWindow, claim_ended
from monitors.leader_lock import LeaderLock

logger = structlog.get_logger(__name__)
_POLL_S = 1.0
_MAX_TEXT_BYTES = 32 << 20
_LOCK_FILE = "watch.lock"


class Profiler:
    """Profiles prediction events on a thread of its own, from start to close.

    ``models`` are the tags of those that serve here now. ``close_window`` is DriftDetector.close:
    only the worker that closes windows calls it, and pays for its memory. ``pseudonym_of`` maps a
    subject to its pseudonym.
    """

    def __init__(
        self,
        folder: Path,
        models: Collection[str],
        settings: tuple[ProfileSettings, DriftSettings],
        close_window: Callable[[EndedWindow], None],
        on_drop: Callable[[int], None],
        pseudonym_of: Callable[[str], str] = lambda _: "",
    ) -> None:
        profiles, self._drift = settings
        self._close_window = close_window
        self._on_drop = on_drop
        self._pseudonym_of = pseudonym_of
        self._spool = Spool(folder / "spool")
        self._folder, self._models = folder, models
        # One for each model, not one for the host: another server here may serve other models.
        self._locks: dict[str, LeaderLock] = {}
        self._pending = Reservoir(
            profiles.max_pending_events,
            _MAX_TEXT_BYTES,
            Random(),  # noqa: S311  no secret
        )
        # Failures that are logged: of spooling under "", of windows by model.
        self._failing: set[str] = set()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="profiler", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def handle(self, events: Sequence[PredictionEvent]) -> None:
        """Queue events; above the bounds a random sample stays, and the others are counted."""
        if dropped := self._pending.add(events):
            self._on_drop(dropped)

    def close(self) -> None:
        """Write waiting events into the spool, and stop."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self._spool_pending()
        for lock in self._locks.values():
            lock.release()

    def _run(self) -> None:
        while not self._closing.wait(_POLL_S):
            self.step()

    def step(self) -> None:
        """Spool waiting events, and close this worker's windows that have ended.

        A failure costs profiles only.
        """
        self._spool_pending()
        for model in self._models:
            try:
                if self._lock(model).acquire():
                    for source in self._spool.sources(model):
                        self._close_windows(source)
                self._failing.discard(model)
            except Exception:
                # Tried again with the next step, because the cause may pass. Logged once.
                if model not in self._failing:
                    logger.exception("windows_not_looked_at", model=model)
                self._failing.add(model)

    def _lock(self, model: str) -> LeaderLock:
        if model not in self._locks:
            file = self._folder.joinpath(*model_tags.split(model), _LOCK_FILE)
            self._locks[model] = LeaderLock(file)
        return self._locks[model]

    def _spool_pending(self) -> None:
        by_source: dict[Source, list[PredictionEvent]] = defaultdict(list)
        for event in self._pending.take():
            by_source[Source(event.model_tag, event.arm)].append(event)
        for source, events in by_source.items():
            if not self._write(source, events):
                self._on_drop(len(events))

    def _write(self, source: Source, events: Sequence[PredictionEvent]) -> bool:
        """Measure and spool events; return whether that succeeded."""
        try:
            texts, labels = [event.text for event in events], [event.label for event in events]
            pseudonyms = [self._pseudonym_of(event.subject) for event in events]
            is_written = self._spool.put(source, measure(texts, labels, events), pseudonyms)
        except Exception:
            if "" not in self._failing:
                logger.exception("profiling_failed")
            self._failing.add("")
            return False
        self._failing.discard("")
        return is_written

    def _close_windows(self, source: Source) -> None:
        for window in claim_ended(self._spool, source, self._drift):
            try:
                self._close_window(window)
            except OSError:
                raise
            except Exception:
                # It would fail again, and hold up later windows.
                logger.exception("window_not_judged", model=source.model)
                self._on_drop(window.rows)
            self._spool.remove(window.parts)
            # Closing may have taken a while.
            self._spool_pending()
            if self._closing.is_set():
                return
