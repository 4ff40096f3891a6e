"""The quality of answers, as a worker has it: what is written, asked and watched, put together."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Protocol, TypeVar

import structlog
from sqlalchemy.engine import URL

from kaiten.errors import (
    DatabaseUnavailable,
    DeadlineExceeded,
    Forbidden,
    InvalidInput,
    RateLimited,
)
from kaiten.quality import Label, VersionQuality
from kaiten.records import PredictionRecord
from kaiten.sections import Quality
from monitors.quality import calibration
from monitors.quality.database import RETRY_S, Database
from monitors.quality.labels import Labels
from monitors.quality.log import PredictionLog
from monitors.quality.pruning import Pruning
from monitors.quality.threads import Threads
from monitors.quality.versions import Versions
from monitors.quality.watch import Gauges, QualityWatch
from monitors.quality.windows import Reference, Windows

logger = structlog.get_logger(__name__)
T = TypeVar("T")
_THREADS = 4
# For the answer to be on its way before the request's own deadline.
_MARGIN_S = 0.2
# More than a connection and a statement take where the database answers at all.
_PATIENCE_S = 10.0
# More than a lock or a statement takes there.
_HANG_S = 5.0


class Watched(Gauges, Protocol):
    """Told of what was measured, and of what was lost."""

    def predictions_dropped(self, count: int) -> None:
        """Count predictions that were not written."""


def _reference(report: Path | None) -> Reference | None:
    found = calibration.read(report)
    return None if report is None or found is None else Reference(report.name, found)


class QualityDesk:
    """What callers and the other parts of a worker ask; ``versions`` are those that it serves.

    They are given by ``name:version``: their labels, and the folder of their newest report. Nothing
    here holds up the event loop, and no thread beside its own few waits for the database.
    """

    def __init__(
        self,
        url: URL,
        home: Path,
        settings: Quality,
        versions: Mapping[str, tuple[Sequence[str], Path | None]],
        watched: Watched,
        pseudonym_of: Callable[[str], str] = lambda _: "",
    ) -> None:
        self._watched = watched
        self._pseudonym_of = pseudonym_of
        self._database = Database(url)
        self._labels = Labels(self._database)
        self._failing = False
        served = Versions({tag: of[0] for tag, of in versions.items()})
        references = {tag: _reference(report) for tag, (_, report) in versions.items()}
        self._windows = Windows(self._database, references, settings.window_rows)
        self._log = PredictionLog(self._database, served, settings, watched.predictions_dropped)
        pruning = Pruning(self._database, settings)
        self._watch = QualityWatch(home, self._labels, self._windows, pruning, watched)
        self._threads = Threads(_THREADS, "quality")

    def start(self) -> None:
        """Begin to write and to watch."""
        self._log.start()
        self._watch.start()

    def put(self, records: Sequence[PredictionRecord]) -> None:
        """Keep the records to be written, or count them as dropped."""
        self._log.put(records)

    async def take(
        self,
        labels: Sequence[Label],
        models: frozenset[str] | None,
        deadline: float,
        subject: str = "",
    ) -> int:
        """Keep all labels, on the disk when this returns, or none; see Labels.take.

        Returns how many are joined to their answers; the others wait for them. ``subject`` is who
        sends them, of whom the database gets a pseudonym.
        Where a connection breaks as they are committed, nobody knows which of the two it is.
        """
        given_up = Event()
        try:
            joined = await self._do(
                lambda: self._labels.take(
                    labels, models, given_up.is_set, self._pseudonym_of(subject)
                ),
                deadline,
            )
        except (InvalidInput, Forbidden, RateLimited):
            self._watched.labels_taken("refused", len(labels))
            raise
        except (DatabaseUnavailable, DeadlineExceeded) as error:
            self._watched.labels_taken("unavailable", len(labels))
            if isinstance(error, DatabaseUnavailable):
                self._tell(failing=True)
            raise
        finally:
            # Of one who was told that they are not kept, none may be written later.
            given_up.set()
        self._tell(failing=False)
        self._watched.labels_taken("joined", joined)
        self._watched.labels_taken("waiting", len(labels) - joined)
        return joined

    def _tell(self, *, failing: bool) -> None:
        """Log when labels begin to be refused for the database's sake, and when that ends."""
        if failing and not self._failing:
            logger.warning("labels_not_taken")
        if self._failing and not failing:
            logger.info("labels_taken_again")
        self._failing = failing

    async def read(self, deadline: float) -> Sequence[VersionQuality]:
        """Return what is known of each version that has answered; DatabaseUnavailable."""
        return await self._do(self._windows.read, deadline)

    def close(self) -> None:
        """Write what waits, and stop."""
        # Both at once: where the database hangs, each takes its time to be given up.
        self._watch.stop()
        self._log.stop()
        self._watch.close()
        self._log.close()
        self._threads.close()
        self._database.close()

    async def _do(self, work: Callable[[], T], deadline: float) -> T:
        """Return what work returns on a thread, shortly before the deadline at the latest.

        DatabaseUnavailable where it takes longer than any database that answers, DeadlineExceeded
        where there was less time. A database that hangs holds up its threads, and nobody else.
        """
        left_s = deadline - time.monotonic() - _MARGIN_S
        if left_s <= 0:
            raise DeadlineExceeded
        try:
            async with asyncio.timeout(min(left_s, _PATIENCE_S)):
                return await asyncio.wrap_future(self._threads.submit(work))
        except TimeoutError:
            if left_s >= _HANG_S:
                self._database.hangs()
                self._watched.database_away(away=True)
            if left_s < _PATIENCE_S:
                raise DeadlineExceeded from None
            raise DatabaseUnavailable(RETRY_S) from None
