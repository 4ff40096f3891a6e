"""What a worker of the service is made of."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from starlette.applications import Starlette

from gateway.access import MODEL_ROUTES
from gateway.admin.operations import Operations
from gateway.admission.controller import Admission
from gateway.admission.draining import Drain
from gateway.app import EdgeParts
from gateway.auth.factory import Tokens
from gateway.auth.factory import build as build_tokens
from gateway.auth.signing_secret import SigningSecret, secret_in_force
from gateway.feedback import QualityRoutes
from gateway.middleware.authentication import Callers
from gateway.predictions import Predictor
from gateway.rate_limit.limiter import Limiter, limiter_for
from gateway.routes import Routes
from kaiten import __version__
from kaiten.pseudonyms import Pseudonyms, shared_key
from kaiten.settings.environment import metrics_directory
from kaiten.settings.loader import Settings
from kaiten.settings.models import RunnerSettings
from kaiten.settings.roster import Roster, open_roster
from lifecycle.environment import check, check_opset, installed_versions
from lifecycle.file_watch import FileWatch
from lifecycle.resolution import reference_in_force, resolve
from lifecycle.store import ModelStore, StoredModel
from monitors.drift.archive.archive import Archive
from monitors.drift.profiler import Profiler
from monitors.drift.state import DriftReport, States
from monitors.events import EventBus
from monitors.logging import writer
from monitors.metrics.definitions import Metrics
from monitors.metrics.latency import LatencyStats
from runners.device_process.client import RemoteRunner
from runners.device_process.processes import socket_of
from runners.engines import choose_engine
from runners.engines.placement import take_place
from runners.runner import Runner
from runners.tasks import find_task

if TYPE_CHECKING:
    from monitors.drift.watch import Watch
    from monitors.feedback.service import QualityDesk

logger = structlog.get_logger("kaiten.service")


@dataclass(frozen=True, slots=True)
class Process:
    """What BentoML knows of the process at hand, once it is a worker: from 0, which one it is.

    ``end`` ends it, so that another takes its place.
    """

    service: str
    worker: Callable[[], int]
    bento_version: Callable[[], str]
    end: Callable[[], None]


class Parts:
    """What one worker holds, each part built when it is first asked for."""

    def __init__(self, settings: Settings, process: Process) -> None:
        self.settings = settings
        self._process = process

    def build(self) -> None:
        """Build all parts now, so that a model or a secret that fails, fails the start."""
        _ = self.predictor, self.edge, self.sinks
        # Read once, while the version is known to be whole: its files may be lost while it serves.
        _ = self.references, self.digests, self.file_watch
        self._subscribe()
        self.metrics.worker_started()

    @cached_property
    def metrics(self) -> Metrics:
        process = self._process
        found = Metrics(
            metrics_directory(), process.service, process.bento_version(), self.answer_times
        )
        writer.report_drops_to(found.log_lines_dropped)
        found.expose_drift(self.drift)
        # Later: the app is there before its models.
        found.expose_versions(__version__, lambda: self.digests)
        found.expose_damaged_files(lambda: self.file_watch.damaged)
        found.expose_workers(self.roster.workers, self.roster.count_ready)
        return found

    @cached_property
    def roster(self) -> Roster:
        return open_roster(self._process.worker())

    @cached_property
    def answer_times(self) -> LatencyStats:
        return LatencyStats(MODEL_ROUTES, metrics_directory())

    @cached_property
    def profiler(self) -> Profiler | None:
        if not self.settings.profiles.enabled:
            return None
        by_subject = self.settings.profiles.by_subject and self.pseudonyms is not None
        return Profiler(
            self.settings.home / "drift",
            [*self.references],
            (self.settings.profiles, self.settings.drift),
            lambda: self.watch,
            self.metrics.drift_events_dropped,
            self.pseudonyms.of if by_subject and self.pseudonyms else lambda _: "",
        )

    @cached_property
    def watch(self) -> "Watch":
        # Here: of all workers, the one that judges windows pays for what it takes.
        from monitors.drift.watch import Watch  # noqa: PLC0415

        archive = Archive(self.settings.profiles.target, self.settings.home)
        return Watch(self.states, self.references, archive, self.settings.drift)

    @cached_property
    def states(self) -> States:
        return States(self.settings.home / "drift")

    @cached_property
    def drift(self) -> DriftReport:
        # Later: the app is there before its models.
        watched = self.settings.profiles.enabled
        return DriftReport(self.states, lambda: self.references, watched=watched)

    @cached_property
    def references(self) -> dict[str, Path | None]:
        """The folder of each served version's reference, which drift is told from."""
        known = self.settings.serving.references
        return {model.card.tag: reference_in_force(model, known) for model in self.models}

    @cached_property
    def models(self) -> list[StoredModel]:
        return [find_model(name, self.settings) for name in self.settings.serving.models]

    @cached_property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of each served version's card."""
        return {model.card.tag: model.digest for model in self.models}

    @cached_property
    def file_watch(self) -> FileWatch:
        return FileWatch(self.models, self.references)

    @cached_property
    def quality(self) -> "QualityDesk":
        # Who keeps no predictions loads no database.
        from monitors.feedback.database import database_url  # noqa: PLC0415
        from monitors.feedback.service import QualityDesk  # noqa: PLC0415

        home, quality = self.settings.home, self.settings.feedback
        versions = {
            each.card.tag: (each.card.labels, self.references[each.card.tag])
            for each in self.models
        }
        url = database_url(self.settings.state, home)
        pseudonym_of = self.pseudonyms.of if self.pseudonyms else lambda _: ""
        return QualityDesk(url, home, quality, versions, self.metrics, pseudonym_of)

    @cached_property
    def sinks(self) -> "list[Profiler | QualityDesk]":
        """What answers are handed to, each with a thread of its own."""
        found: list[Profiler | QualityDesk | None] = [
            self.profiler,
            self.quality if self.settings.feedback.enabled else None,
        ]
        return [each for each in found if each is not None]

    @cached_property
    def events(self) -> EventBus:
        return EventBus()

    def _subscribe(self) -> None:
        self.events.subscribe(self.metrics.handle, lambda _: None)
        if self.profiler is not None:
            self.events.subscribe(self.profiler.handle, self.metrics.drift_events_dropped)
        if self.settings.feedback.enabled:
            self.events.subscribe(self.quality.handle, self.metrics.feedback_events_dropped)

    @cached_property
    def runners(self) -> list[Runner | RemoteRunner]:
        make = self._remote_runner if self.settings.runners.process == "device" else self._runner
        return [make(model) for model in self.models]

    @cached_property
    def predictor(self) -> Predictor:
        return Predictor(self.runners, self.settings.gateway, lambda: self.tokens.watch.known)

    @cached_property
    def edge(self) -> EdgeParts:
        loopback_only = self.secret is not None and self.secret.development
        return EdgeParts(
            self.settings,
            Callers(self.tokens.authenticator, loopback_only),
            self.routes.direct() | self.quality_routes.direct(),
            self.metrics,
            self.metrics,
            self.events,
            self.limiter,
            self.drain,
            self.admission,
        )

    @cached_property
    def admission(self) -> Admission:
        # Later: connections are there before the models and the metrics.
        return Admission(
            lambda: self.predictor,
            lambda: self.tokens.authenticator,
            lambda: self.drain.active,
            lambda: self.metrics,
            self.settings.serving.request_timeout_s,
        )

    @cached_property
    def drain(self) -> Drain:
        return Drain(self.settings.serving.drain_s)

    @cached_property
    def routes(self) -> Routes:
        return Routes(
            lambda: self.predictor,
            lambda: self.metrics,
            self.settings.gateway,
            self.settings.api_versions,
            quality=self.settings.feedback.enabled,
        )

    @cached_property
    def quality_routes(self) -> QualityRoutes:
        return QualityRoutes(lambda: self.quality, self.settings.gateway)

    @cached_property
    def app(self) -> Starlette:
        """The app of all routes that the edge does not call itself."""
        operations = Operations(lambda: self.answer_times, lambda: self.drift)
        return self.routes.app([*operations.routes(), *self.quality_routes.routes()])

    @cached_property
    def secret(self) -> SigningSecret | None:
        return secret_in_force(self.settings)

    @cached_property
    def tokens(self) -> Tokens:
        return build_tokens(self.settings, self.secret, observer=self.metrics)

    @cached_property
    def pseudonyms(self) -> Pseudonyms | None:
        key = shared_key(self.settings.logging, self.secret.value if self.secret else None)
        return Pseudonyms(key) if key else None

    @cached_property
    def limiter(self) -> Limiter | None:
        timeout_s = self.settings.serving.request_timeout_s
        return limiter_for(self.settings.rate_limit, self.settings.state, timeout_s, self.metrics)

    @cached_property
    def _placed(self) -> RunnerSettings:
        return take_place(self.settings.runners, self._process.worker())

    def _runner(self, model: StoredModel) -> Runner:
        card, batching = model.card, self.settings.effective_batching
        check_opset(card, choose_engine(model.folder, self.settings.runners).newest_opset)
        family = find_task(card.task)
        task = family.load(model.folder, card.max_length, self._placed, self.references[card.tag])
        observer = self.metrics.observer(card.tag)
        return Runner(card.tag, card.labels, task, batching, observer, self._process.end)

    def _remote_runner(self, model: StoredModel) -> RemoteRunner:
        card, family = model.card, find_task(model.card.task)
        return RemoteRunner(
            card.tag,
            card.labels,
            family.load_processor(model.folder, card.max_length),
            family.codec,
            socket_of(self.settings.runners, self._process.worker()),
            self.settings.effective_batching,
            self._process.end,
        )


def find_model(name: str, settings: Settings) -> StoredModel:
    """Return the version that a name in serving.models stands for."""
    store = ModelStore(settings.signatures)
    found = resolve(name, store, in_production=settings.in_production)
    model = found.model
    if not found.promoted:
        logger.warning("unpromoted_version_pinned", model=model.card.tag)
    packages = choose_engine(model.folder, settings.runners).packages
    for difference in check(model.card, installed_versions(packages)):
        logger.warning("environment_differs", model=model.card.tag, difference=str(difference))
    return model
