"""Profiles of what was answered, beside the request path.

Events wait in a bounded sample, and the request path pays for one append to it. About once a
second a thread measures their texts, forgets them, and writes the measures into the spool. Of a
host's workers, the one that holds a model's lock closes the windows that its answers fill; the
kernel releases the lock of a worker that is killed.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from random import Random
from typing import Protocol

import structlog
from filelock import FileLock

from kaiten import model_tags
from kaiten.events import PredictionEvent
from kaiten.settings.models import DriftSettings, ProfileSettings
from monitors.drift.features import measure
from monitors.drift.reservoir import Reservoir
from monitors.drift.spool import Source, Spool
from monitors.drift.windows import Window, ended
from monitors.leader_lock import keeper, keeps

logger = structlog.get_logger(__name__)
_TURN_S = 1.0
_MAX_TEXT_BYTES = 32 << 20
_LOCK_FILE = "watch.lock"


class Watch(Protocol):
    """Judges the windows of a host."""

    def close(self, window: Window) -> None:
        """Keep and judge a window; its parts are removed afterwards.

        OSError where it may be tried again.
        """


class Profiler:
    """Profiles records in a thread of its own, from start to close.

    ``models`` are the tags of those that serve here now. ``watch`` is asked for where this worker
    is the one that closes windows and there is one to close: what it is made of takes memory.
    """

    def __init__(
        self,
        folder: Path,
        models: Collection[str],
        settings: tuple[ProfileSettings, DriftSettings],
        watch: Callable[[], Watch],
        on_drop: Callable[[int], None],
        tenant_of: Callable[[str], str] = lambda _: "",
    ) -> None:
        profiles, self._drift = settings
        self._watch = watch
        self._on_drop = on_drop
        self._tenant_of = tenant_of
        self._spool = Spool(folder / "spool")
        self._folder, self._models = folder, models
        # Of a model, and not of the host: another server here may serve others.
        self._locks: dict[str, FileLock] = {}
        self._pending = Reservoir(
            profiles.max_pending_events,
            _MAX_TEXT_BYTES,
            Random(),  # noqa: S311  no secret
        )
        self._failing: set[str] = set()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="profiler", daemon=True)

    def start(self) -> None:
        """Start the side thread."""
        self._thread.start()

    def handle(self, events: Sequence[PredictionEvent]) -> None:
        """Queue events; above the bounds a random sample stays, and the others are counted."""
        if dropped := self._pending.add(events):
            self._on_drop(dropped)

    def close(self) -> None:
        """Put what waits into the spool, and stop."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self._spool_pending()
        for lock in self._locks.values():
            lock.release()

    def _run(self) -> None:
        while not self._closing.wait(_TURN_S):
            self.step()

    def step(self) -> None:
        """Take one turn: spool what waits, and close the windows that have ended and are ours.

        A failure costs profiles, and no more.
        """
        self._spool_pending()
        for model in self._models:
            try:
                if keeps(self._lock(model)):
                    for source in self._spool.arms(model):
                        self._close_windows(source)
                self._failing.discard(model)
            except Exception:
                # It may pass: what was not done is tried with the next turn, and told of once.
                if model not in self._failing:
                    logger.exception("windows_not_looked_at", model=model)
                self._failing.add(model)

    def _lock(self, model: str) -> FileLock:
        if model not in self._locks:
            file = self._folder.joinpath(*model_tags.split(model), _LOCK_FILE)
            self._locks[model] = keeper(file)
        return self._locks[model]

    def _spool_pending(self) -> None:
        by_source: dict[Source, list[PredictionEvent]] = defaultdict(list)
        for event in self._pending.take():
            by_source[Source(event.model_tag, event.arm)].append(event)
        for source, events in by_source.items():
            if not self._spooled(source, events):
                self._on_drop(len(events))

    def _spooled(self, source: Source, events: Sequence[PredictionEvent]) -> bool:
        try:
            texts, labels = [event.text for event in events], [event.label for event in events]
            tenants = [self._tenant_of(event.subject) for event in events]
            is_written = self._spool.put(source, measure(texts, labels, events), tenants)
        except Exception:
            if "" not in self._failing:
                logger.exception("profiling_failed")
            self._failing.add("")
            return False
        self._failing.discard("")
        return is_written

    def _close_windows(self, source: Source) -> None:
        for window in ended(self._spool, source, self._drift):
            try:
                self._watch().close(window)
            except OSError:
                raise
            except Exception:
                # It would fail again, and hold up all after it.
                logger.exception("window_not_judged", model=source.model)
                self._on_drop(window.rows)
            self._spool.forget(window.parts)
            # It may have taken a while.
            self._spool_pending()
            if self._closing.is_set():
                return
