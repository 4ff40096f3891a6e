"""One worker of the server: every part is built here, in the order in which they need each other.

``start`` and ``stop`` run on the event loop, once BentoML has constructed the service.
"""

import asyncio
import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import bentoml
import structlog
from starlette.types import ASGIApp

from gateway.admission.controller import Admission
from gateway.app import EdgeParts, route_table, wrap
from gateway.auth.factory import build as build_tokens
from gateway.auth.signing_secret import SigningSecret, find_pseudonyms, secret_in_force
from gateway.middleware.access import Callers
from gateway.prediction import PredictionHandler
from gateway.rate_limit.limiter import limiter_for
from gateway.security_log import security_log
from gateway.services import MetricsReader, Services
from kaiten import __version__
from kaiten.errors import SetupError
from kaiten.pseudonyms import Pseudonyms
from kaiten.settings.environment import metrics_directory
from kaiten.settings.loader import Settings
from kaiten.settings.roster import open_roster
from kaiten.settings.snapshot import release_snapshot
from lifecycle.file_watch import FileWatch
from lifecycle.store import StoredModel
from monitors.drift.archive.archive import Archive
from monitors.drift.profiler import Profiler
from monitors.drift.state import DriftStates, ServedDrift
from monitors.events import EventBus
from monitors.logging import writer
from monitors.logging.setup import configure_logging
from monitors.metrics.definitions import Metrics
from monitors.metrics.latency import LatencyStats
from runners.engines.placement import take_place
from runners.registry import ModelRunner, Registry
from server.bentoml_config import SERVICE_NAME
from server.models import connect_runner, describe, find_baselines, find_models, load_runner
from server.shutdown import Drain, end_process, leave

if TYPE_CHECKING:
    from monitors.drift.detector import DriftDetector
    from monitors.feedback.service import FeedbackService

logger = structlog.get_logger("kaiten.service")
# With Python's default of 5 ms, a thread that returns from inference waits so long for a busy event
# loop: as long as a small batch takes to compute. Measured with four values, one and two workers:
# benchmarks/results/2026-11-30-switch-interval.md.
SWITCH_INTERVAL_S = 0.0001
# Collections of young garbage before a full one, a hundred times Python's default: requests leave
# no cycles, and beside a full queue a full collection blocks the event loop for 150 ms.
_FULL_COLLECTION = 1000


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """The process of a worker, as BentoML knows it; ``index`` counts from 0.

    ``end`` ends the process, so that another takes its place.
    """

    index: int
    bento_version: str
    end: Callable[[], None]

    @classmethod
    def current(cls, settings: Settings) -> "WorkerProcess":
        """Return this process, which BentoML has started."""
        context = bentoml.server_context
        # BentoML counts its workers from 1.
        index = (context.worker_index or 1) - 1
        return cls(index, context.bento_version, partial(end_process, settings.serving))


def build_worker(settings: Settings, process: WorkerProcess) -> "Worker":
    """Build the worker of this process.

    Raises:
        SetupError: A model or a secret fails, and with it the start.

    """
    writer.detach_console()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        secret = secret_in_force(settings)
        pseudonyms = find_pseudonyms(settings, secret)
        # Again, because BentoML has configured its own since the service was imported.
        configure_logging(settings.logging, pseudonyms, process.index + 1)
        worker = Worker(settings, process, secret, pseudonyms, find_models(settings))
    except SetupError as error:
        # BentoML logs a traceback, and the supervisor tries again.
        logger.error("worker_not_started", reason=error.message)  # noqa: TRY400  not a bug
        raise
    release_snapshot()
    return worker


class Worker:
    """All parts of one worker. Nothing runs before ``start``.

    ``admission`` precedes its middleware, which ``wrap`` puts around BentoML's app. ``roster``
    counts its connections, and those of the other workers.
    """

    def __init__(
        self,
        settings: Settings,
        process: WorkerProcess,
        secret: SigningSecret | None,
        pseudonyms: Pseudonyms | None,
        models: Sequence[StoredModel],
    ) -> None:
        self._settings, self._process, self._pseudonyms = settings, process, pseudonyms
        baselines = find_baselines(models, settings)
        self._registry = Registry()
        self._states = DriftStates(settings.home / "drift")
        self._drift_report = ServedDrift(
            self._states, self._registry.models, watched=settings.profiles.enabled
        )
        self._file_watch = FileWatch(models, baselines)
        self.roster = open_roster(process.index)
        self._routes = route_table(settings)
        self._latency = LatencyStats(self._routes.model_routes, metrics_directory())
        self._metrics = self._build_metrics()
        self._tokens = build_tokens(settings, secret, observer=self._metrics)
        self._load(models, baselines)
        self._profiler = self._build_profiler() if settings.profiles.enabled else None
        self._feedback = self._build_feedback() if settings.feedback.enabled else None
        self._events = self._build_events()
        self._limiter = limiter_for(
            settings.rate_limit, settings.state, settings.serving.request_timeout_s, self._metrics
        )
        self._drain = Drain(settings.serving.drain_s)
        self._services = self._build_services()
        self.admission = Admission(
            self._services,
            self._tokens.authenticator,
            self._metrics,
            settings.serving.request_timeout_s,
        )
        self._loopback_only = secret is not None and secret.development
        self._metrics.worker_started()
        self._background: list[asyncio.Task[None]] = []
        self._warming: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether a balancer is to send requests here."""
        return self.admission.ready

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """Return BentoML's app inside the gateway's middleware."""
        edge = wrap(
            app,
            EdgeParts(
                self._services,
                Callers(self._tokens.authenticator, self._loopback_only),
                self._metrics,
                self._events,
                self._limiter,
            ),
        )
        self.admission.edge = edge
        return edge

    async def start(self) -> None:
        """Start the threads and tasks; models warm up beside them, and readiness shows when."""
        for subscriber in self._subscribers:
            subscriber.start()
        self._file_watch.start()
        self._drain.start()
        self._background = [
            *self._tokens.start(),
            asyncio.create_task(self.roster.publish(lambda: self.ready)),
        ]
        self._warming = asyncio.create_task(self._registry.start())
        # Objects from the start stay: the collector need not traverse them again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*gc.get_threshold()[:2], _FULL_COLLECTION)

    async def stop(self) -> None:
        """Reject waiting requests, and write pending events, labels and logs."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._registry.close()
        if self._warming is not None:
            await self._warming
        self._file_watch.close()
        for subscriber in self._subscribers:
            await asyncio.to_thread(subscriber.close)
        if self._limiter is not None:
            await self._limiter.close()
        security_log.end_period()
        # The signal that ends this process ends its threads, too.
        await asyncio.to_thread(writer.flush)
        if self._registry.hung:
            # Python would wait for the thread that hangs.
            leave()

    @property
    def _subscribers(self) -> "list[Profiler | FeedbackService]":
        """The subscribers to prediction events that have threads of their own."""
        return [part for part in (self._profiler, self._feedback) if part is not None]

    def _build_metrics(self) -> Metrics:
        process, models = self._process, self._registry.models
        metrics = Metrics(metrics_directory(), SERVICE_NAME, process.bento_version, self._latency)
        writer.report_drops_to(metrics.log_lines_dropped)
        metrics.expose_drift(self._drift_report.drift)
        metrics.expose_versions(
            __version__, lambda: {tag: model.card_digest for tag, model in models.items()}
        )
        metrics.expose_damaged_files(lambda: self._file_watch.damaged)
        metrics.expose_workers(self.roster.workers, self.roster.count_ready)
        return metrics

    def _load(self, models: Sequence[StoredModel], baselines: Mapping[str, Path | None]) -> None:
        settings, process = self._settings, self._process
        if settings.runners.process == "worker":
            placed = take_place(settings.runners, process.index)
            settings = settings.model_copy(update={"runners": placed})
        for model in models:
            tag, baseline = model.card.tag, baselines[model.card.tag]
            runner: ModelRunner
            if settings.runners.process == "worker":
                observer = self._metrics.observer(tag)
                runner = load_runner(model, baseline, settings, observer, process.end)
            else:
                runner = connect_runner(model, settings, process.index, process.end)
            self._registry.add(describe(model, baseline), runner)

    def _build_profiler(self) -> Profiler:
        settings, models = self._settings, self._registry.models

        @cache
        def detector() -> "DriftDetector":
            # Loaded late: only the worker that closes windows pays for its memory.
            from monitors.drift.detector import DriftDetector  # noqa: PLC0415

            archive = Archive(settings.profiles.target, settings.home)
            return DriftDetector(self._states, models, archive.put, settings.drift)

        by_subject = settings.profiles.by_subject
        return Profiler(
            settings.home / "drift",
            models,
            (settings.profiles, settings.drift),
            lambda window: detector().close(window),
            self._metrics.drift_events_dropped,
            self._pseudonym_of if by_subject else lambda _: "",
        )

    def _build_feedback(self) -> "FeedbackService":
        # A worker without feedback loads no database driver.
        from monitors.feedback.database import database_url  # noqa: PLC0415
        from monitors.feedback.service import FeedbackService  # noqa: PLC0415

        home = self._settings.home
        return FeedbackService(
            database_url(self._settings.state, home),
            home,
            self._settings.feedback,
            self._registry.models,
            self._metrics,
            self._pseudonym_of,
        )

    def _build_events(self) -> EventBus:
        events, metrics = EventBus(), self._metrics
        events.subscribe(metrics.handle, lambda _: None)
        if self._profiler is not None:
            events.subscribe(self._profiler.handle, metrics.drift_events_dropped)
        if self._feedback is not None:
            events.subscribe(self._feedback.handle, metrics.feedback_events_dropped)
        return events

    def _pseudonym_of(self, subject: str) -> str:
        return self._pseudonyms.of(subject) if self._pseudonyms else ""

    def _build_services(self) -> Services:
        settings = self._settings
        return Services(
            settings,
            self._routes,
            PredictionHandler(self._registry, settings.gateway, lambda: self._tokens.watch.known),
            MetricsReader(self._metrics.exposition),
            self._latency,
            self._drift_report,
            self._feedback,
            lambda: self._drain.active,
        )
