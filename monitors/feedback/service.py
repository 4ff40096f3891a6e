"""The feedback service of a worker: the prediction log, labels and measures of quality."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import TypeVar

import structlog
from sqlalchemy.engine import URL

from kaiten.errors import (
    DatabaseUnavailable,
    DeadlineExceeded,
    Forbidden,
    InvalidInput,
    RateLimited,
)
from kaiten.events import PredictionEvent
from kaiten.feedback import Label, VersionQuality
from kaiten.serving import ServedModel
from kaiten.settings.models import FeedbackSettings
from monitors.feedback import accuracy_estimate
from monitors.feedback.daemon_threads import DaemonThreads
from monitors.feedback.database import RETRY_S, Database
from monitors.feedback.job import FeedbackJob, FeedbackMetrics
from monitors.feedback.labels import Labels
from monitors.feedback.predictions import PredictionLog
from monitors.feedback.retention import Pruner
from monitors.feedback.windows import QualityWindows, ReportCalibration

logger = structlog.get_logger(__name__)
T = TypeVar("T")
_THREADS = 4
# Left for sending the response before the request's deadline.
_MARGIN_S = 0.2
# Longer than connecting and a statement take with any database that answers.
_TIMEOUT_S = 10.0
# Longer than a lock or a statement takes with such a database.
_HANG_S = 5.0


class _Calibrations(Mapping[str, ReportCalibration | None]):
    """The calibration of each served version, by model tag.

    Each is read once, because its file may be lost while the version serves.
    """

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self._models = models
        self._read: dict[Path, ReportCalibration | None] = {}
        for tag in models:
            self.get(tag)

    def __getitem__(self, tag: str) -> ReportCalibration | None:
        report = self._models[tag].baseline
        if report is None:
            return None
        if report not in self._read:
            calibration = accuracy_estimate.read(report)
            self._read[report] = (
                ReportCalibration(report.name, calibration) if calibration else None
            )
        return self._read[report]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)


class FeedbackService:
    """Logs predictions, accepts labels and reports quality, without blocking the event loop.

    ``models`` are those that serve now, by model tag. Only the service's own threads wait for the
    database. ``pseudonym_of`` maps a subject to its pseudonym in the database.
    """

    def __init__(
        self,
        url: URL,
        home: Path,
        settings: FeedbackSettings,
        models: Mapping[str, ServedModel],
        metrics: FeedbackMetrics,
        pseudonym_of: Callable[[str], str] = lambda _: "",
    ) -> None:
        self._metrics = metrics
        self._pseudonym_of = pseudonym_of
        self._database = Database(url)
        self._labels = Labels(self._database)
        self._failing = False
        self._windows = QualityWindows(self._database, _Calibrations(models), settings.window_rows)
        self._log = PredictionLog(self._database, models, settings, metrics.feedback_events_dropped)
        pruner = Pruner(self._database, settings)
        self._job = FeedbackJob(home, self._labels, self._windows, pruner, metrics)
        self._threads = DaemonThreads(_THREADS, "feedback")

    def start(self) -> None:
        """Start the threads that write predictions and measure quality."""
        self._log.start()
        self._job.start()

    def handle(self, events: Sequence[PredictionEvent]) -> None:
        """Queue predictions to be written; those that do not fit are counted as dropped."""
        self._log.handle(events)

    async def take(
        self,
        labels: Sequence[Label],
        models: frozenset[str] | None,
        deadline: float,
        subject: str = "",
    ) -> int:
        """Store all labels durably, or none; see Labels.take.

        Returns how many were joined to their predictions; the others wait for theirs. ``deadline``
        is by time.monotonic(), and ``subject`` the sender. If the connection breaks during the
        commit, the labels may be stored although this raises.

        Raises:
            DeadlineExceeded: The deadline is too close, or passed; and the errors of Labels.take.

        """
        given_up = Event()
        try:
            joined = await self._run(
                lambda: self._labels.take(
                    labels, models, given_up.is_set, self._pseudonym_of(subject)
                ),
                deadline,
            )
        except (InvalidInput, Forbidden, RateLimited):
            self._metrics.labels_received("refused", len(labels))
            raise
        except (DatabaseUnavailable, DeadlineExceeded) as error:
            self._metrics.labels_received("unavailable", len(labels))
            if isinstance(error, DatabaseUnavailable):
                self._log_change(failing=True)
            raise
        finally:
            # After an error none of the labels may be stored any more.
            given_up.set()
        self._log_change(failing=False)
        self._metrics.labels_received("joined", joined)
        self._metrics.labels_received("waiting", len(labels) - joined)
        return joined

    def _log_change(self, *, failing: bool) -> None:
        """Log when labels begin to be refused because of the database, and when that ends."""
        if failing and not self._failing:
            logger.warning("labels_not_taken")
        if self._failing and not failing:
            logger.info("labels_taken_again")
        self._failing = failing

    async def read(self, deadline: float) -> Sequence[VersionQuality]:
        """Return the quality of each version that has answered.

        Raises:
            DatabaseUnavailable: The database cannot be reached, or does not answer.
            DeadlineExceeded: The deadline is too close, or passed.

        """
        return await self._run(self._windows.read, deadline)

    def close(self) -> None:
        """Write waiting predictions, and stop."""
        # Stopped first, so that both time out together if the database hangs.
        self._job.stop()
        self._log.stop()
        self._job.close()
        self._log.close()
        self._threads.close()
        self._database.close()

    async def _run(self, work: Callable[[], T], deadline: float) -> T:
        """Run work on a thread, at most until shortly before the deadline.

        Raises:
            DatabaseUnavailable: The work takes longer than any database that answers.
            DeadlineExceeded: There is less time than that.

        """
        left_s = deadline - time.monotonic() - _MARGIN_S
        if left_s <= 0:
            raise DeadlineExceeded
        try:
            async with asyncio.timeout(min(left_s, _TIMEOUT_S)):
                return await asyncio.wrap_future(self._threads.submit(work))
        except TimeoutError:
            if left_s >= _HANG_S:
                self._database.mark_hung()
                self._metrics.database_unavailable(unavailable=True)
            if left_s < _TIMEOUT_S:
                raise DeadlineExceeded from None
            raise DatabaseUnavailable(RETRY_S) from None
