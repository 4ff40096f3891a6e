"""The BentoML service: builds the parts from the settings and joins them."""

import asyncio
import gc
import os
import secrets
import signal
import threading
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import bentoml
import structlog
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.server.http import traffic
from bentoml._internal.utils.analytics import usage_stats
from bentoml.exceptions import BentoMLException
from bentoml.serving import running_inside_container
from opentelemetry.util.http import ExcludeList

from gateway.access import MODEL_ROUTES
from gateway.edge import Edge, EdgeParts
from gateway.limiting.limiter import Limiter, limiter_for
from gateway.middleware.authentication import Callers
from gateway.middleware.back_stop import BackStopMiddleware
from gateway.operations import Operations
from gateway.predictions import Predictor
from gateway.quality import QualityRoutes
from gateway.routes import Routes, for_bentoml
from gateway.schemas import PredictV2Response
from gateway.tokens.build import Tokens
from gateway.tokens.build import build as build_tokens
from kaiten import tls
from kaiten.cores import count_of
from kaiten.errors import DatabaseUnavailable, SetupError
from kaiten.pseudonyms import Pseudonyms, shared_key
from kaiten.sections import Runners
from kaiten.settings import (
    Settings,
    bentoml_configuration,
    check_back_stop,
    hand_down,
    hand_down_pseudonym_key,
    load_settings,
    metrics_directory,
    settings_file,
)
from kaiten.signing import SigningSecret, secret_in_force
from lifecycle.consistency import check, check_opset, installed_versions
from lifecycle.resolution import resolve
from lifecycle.store import ModelStore, StoredModel
from monitors import logs
from monitors.answer_times import AnswerTimes
from monitors.archive.archive import Archive
from monitors.archive.target import check_target
from monitors.drift.state import NO_REFERENCE, DriftReport, States
from monitors.fan_out import FanOut
from monitors.instruments import Instruments, own_directory
from monitors.log_files import check_folder
from monitors.profiles import Profiler
from runners.engines import choose_engine
from runners.engines.placement import devices, holders, take_place
from runners.remote.client import RemoteRunner
from runners.remote.processes import DeviceProcesses, own_folder, socket_of
from runners.runner import Runner
from runners.tasks import find_task

if TYPE_CHECKING:
    from monitors.drift.watch import Watch
    from monitors.quality.desk import QualityDesk

# `bentoml serve` has asked whether it may report usage, and keeps the answer, before it imports
# this module; importing kaiten has said no since.
usage_stats.do_not_track.cache_clear()

# BentoML has one directory for the metrics of all servers, and clears it when one starts.
shared = Path(BentoMLContainer.prometheus_multiproc_dir.get())
own_metrics = own_directory(shared)
BentoMLContainer.prometheus_multiproc_dir.set(str(own_metrics))

# Without an exporter, a trace costs each request more than the rest of the edge, for nobody.
if BentoMLContainer.tracing.exporter_type.get() is None:
    BentoMLContainer.tracing_excluded_urls.set(ExcludeList([".*"]))

# Its own keeps a timer for every request until its time is up; no setting replaces or removes it.
traffic.TimeoutMiddleware = BackStopMiddleware  # type: ignore[misc, assignment]

# Not plain "kaiten": `bentoml serve kaiten:1.2.3` would first import the package of that name, from
# wherever it is installed, and then serve the bento with that code.
NAME = "kaiten_service"
_GRACE_S = 5
# What a worker may hold for a device process, in queues' lengths: that process itself refuses more
# than one, and this only bounds what waits to be tokenised, travels or is computed.
_ROOM = 4
logger = structlog.get_logger("kaiten.service")


class Parts:
    """What one worker holds, each part built when it is first asked for."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def build(self) -> None:
        """Build all parts now, so that a model or a secret that fails, fails the start."""
        _ = self.predictor, self.edge, self.sinks

    @cached_property
    def instruments(self) -> Instruments:
        version = bentoml.server_context.bento_version
        found = Instruments(metrics_directory(), NAME, version, self.answer_times)
        found.show_drift(self.drift)
        return found

    @cached_property
    def answer_times(self) -> AnswerTimes:
        return AnswerTimes(MODEL_ROUTES, metrics_directory())

    @cached_property
    def profiler(self) -> Profiler | None:
        if not self.settings.profiles.enabled:
            return None
        by_tenant = self.settings.profiles.by_tenant and self.pseudonyms is not None
        return Profiler(
            self.settings.home / "drift",
            self.settings.profiles,
            self.settings.drift,
            lambda: self.watch,
            self.instruments.records_dropped,
            self.pseudonyms.of if by_tenant and self.pseudonyms else lambda _: "",
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
        return DriftReport(self.states, self.references)

    @cached_property
    def references(self) -> dict[str, Path | None]:
        """The folder of each served version's reference, which drift is told from."""
        return {model.card.tag: model.reference for model in self.models}

    @cached_property
    def models(self) -> list[StoredModel]:
        return [find_model(name) for name in self.settings.serving.models]

    @cached_property
    def quality(self) -> "QualityDesk":
        # Who keeps no predictions loads no database.
        from monitors.quality.database import database_url  # noqa: PLC0415
        from monitors.quality.desk import QualityDesk  # noqa: PLC0415

        home, quality = self.settings.home, self.settings.quality
        versions = {each.card.tag: (each.card.labels, each.reference) for each in self.models}
        url = database_url(self.settings.state, home)
        return QualityDesk(url, home, quality, versions, self.instruments)

    @cached_property
    def sinks(self) -> "list[Profiler | QualityDesk]":
        """What answers are handed to, each with a thread of its own."""
        found: list[Profiler | QualityDesk | None] = [
            self.profiler,
            self.quality if self.settings.quality.enabled else None,
        ]
        return [each for each in found if each is not None]

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
            routes.direct() | quality_routes.direct(),
            self.instruments,
            # Later: the app is there before its models.
            FanOut(lambda: self.sinks),
            self.limiter,
        )

    @cached_property
    def secret(self) -> SigningSecret | None:
        return secret_in_force(self.settings)

    @cached_property
    def tokens(self) -> Tokens:
        return build_tokens(self.settings, self.secret)

    @cached_property
    def pseudonyms(self) -> Pseudonyms | None:
        key = shared_key(self.settings.logging, self.secret.value if self.secret else None)
        return Pseudonyms(key) if key else None

    @cached_property
    def limiter(self) -> Limiter | None:
        timeout_s = self.settings.serving.request_timeout_s
        return limiter_for(self.settings.limits, self.settings.state, timeout_s, self.instruments)

    @cached_property
    def _placed(self) -> Runners:
        return take_place(self.settings.runners, _worker())

    def _runner(self, model: StoredModel) -> Runner:
        card, batching = model.card, self.settings.batching
        check_opset(card, choose_engine(model.folder, self.settings.runners).newest_opset)
        family = find_task(card.task)
        task = family.load(model.folder, card.max_length, self._placed, model.reference)
        observer = self.instruments.observer(card.tag)
        return Runner(card.tag, card.labels, task, batching, observer, _end_worker)

    def _remote_runner(self, model: StoredModel) -> RemoteRunner:
        card, family = model.card, find_task(model.card.task)
        return RemoteRunner(
            card.tag,
            card.labels,
            family.load_processor(model.folder, card.max_length),
            family.codec,
            socket_of(self.settings.runners, _worker()),
            _ROOM * self.settings.batching.max_queue_items,
        )


def _worker() -> int:
    # BentoML counts its workers from 1.
    return (bentoml.server_context.worker_index or 1) - 1


def find_model(name: str) -> StoredModel:
    """Return the version that a name in serving.models stands for."""
    settings = parts.settings
    store = ModelStore(settings.signatures)
    found = resolve(name, store, in_production=settings.in_production)
    model = found.model
    if not found.promoted:
        logger.warning("unpromoted_version_pinned", model=model.card.tag)
    packages = choose_engine(model.folder, settings.runners).packages
    for difference in check(model.card, installed_versions(packages)):
        logger.warning("environment_differs", model=model.card.tag, difference=str(difference))
    return model


def _prepare_database(settings: Settings) -> None:
    """Make its tables before any worker asks for them; one that is away stops no start.

    Then whoever reaches it first makes them.
    """
    if not settings.quality.enabled:
        return
    from monitors.quality.database import Database, database_url  # noqa: PLC0415

    database = Database(database_url(settings.state, settings.home))
    try:
        database.migrate()
    except DatabaseUnavailable:
        logger.warning("started_without_database", remedy="state.database_url")
    finally:
        database.close()


def _end_worker() -> None:
    """End this process in good order, or at once where callers hold it up; another takes its place.

    In a container BentoML starts no other, so the whole server ends, and the container is replaced.
    """
    patience_s = parts.settings.serving.request_timeout_s + _GRACE_S
    last_resort = threading.Timer(patience_s, os._exit, (1,))
    last_resort.daemon = True
    last_resort.start()
    if running_inside_container():
        os.kill(os.getppid(), signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)


try:
    parts = Parts(load_settings())
except SetupError as error:
    raise BentoMLException(error.message) from None
logs.configure(parts.settings.logging)
routes = Routes(
    lambda: parts.predictor,
    lambda: parts.instruments,
    parts.settings.gateway,
    parts.settings.api_versions,
    quality=parts.settings.quality.enabled,
)
operations = Operations(lambda: parts.answer_times, lambda: parts.drift)
quality_routes = QualityRoutes(lambda: parts.quality, parts.settings.gateway)


# The values of configuration.yaml, for a `bentoml serve` that names no configuration file.
@bentoml.service(
    name=NAME,
    workers=1,
    traffic={"timeout": 60},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    http={"host": "0.0.0.0" if parts.settings.in_production else "127.0.0.1"},  # noqa: S104  a container's own address
    ssl=tls.for_bentoml(parts.settings.tls),
)
class Kaiten:
    """Predictions by fine-tuned models: batched, authenticated, measured and profiled."""

    def __init__(self) -> None:
        # Once more: BentoML has configured its own since this module was imported.
        logs.configure(parts.settings.logging, parts.pseudonyms, _worker() + 1)
        parts.build()

    @bentoml.on_deployment
    @staticmethod
    def check_once() -> None:
        """Stop before any worker starts if a model, its engine or the secret is missing."""
        settings = parts.settings
        in_force = BentoMLContainer.config.services[NAME].get()
        workers = count_of(in_force["workers"])
        logger.info(
            "configuration_in_force",
            settings=str(settings_file() or "none: the values in kaiten/sections.py"),
            bentoml=bentoml_configuration() or "none named: the values in service.py",
            environment=settings.environment,
            workers=workers,
            process=settings.runners.process,
        )
        try:
            sockets = own_folder() if settings.runners.process == "device" else None
            check_back_stop(settings, in_force["traffic"]["timeout"])
            build_tokens(settings, parts.secret)
            tls.check(settings.tls, in_force["ssl"])
            check_folder(settings.logging)
            check_target(settings.profiles.target)
            _prepare_database(settings)
            if parts.pseudonyms is None:
                hand_down_pseudonym_key(secrets.token_hex(32))
                logger.warning("pseudonyms_change_with_each_start", remedy="logging.pseudonym_key")
            found = [find_model(name) for name in settings.serving.models]
            for model in found:
                find_task(model.card.task)
                if settings.profiles.enabled and model.reference is None:
                    logger.warning("drift_not_watched", model=model.card.tag, reason=NO_REFERENCE)
                choice = choose_engine(model.folder, settings.runners)
                logger.info("engine_chosen", model=model.card.tag, **asdict(choice))
            hand_down(
                settings,
                holders(settings.runners, workers),
                devices(settings.runners),
                sockets,
                [model.card.tag for model in found],
            )
            if sockets is not None:
                folders = sockets, ModelStore().folder, own_metrics.resolve()
                DeviceProcesses(settings.runners, workers, *folders).start()
        except SetupError as error:
            raise BentoMLException(error.message) from None

    @bentoml.on_startup
    async def start(self) -> None:
        """Warm the models up beside the server, so that liveness and readiness tell them apart."""
        for sink in parts.sinks:
            sink.start()
        self.watching = parts.tokens.start()
        self.warming = [asyncio.create_task(runner.start()) for runner in parts.runners]
        # What is here by now stays: the collector need not walk through it again and again.
        gc.collect()
        gc.freeze()

    @bentoml.on_shutdown
    async def stop(self) -> None:
        """Refuse what waits and write what was profiled."""
        for task in self.watching:
            task.cancel()
        await asyncio.gather(*self.watching, return_exceptions=True)
        await asyncio.gather(*(runner.close() for runner in parts.runners), *self.warming)
        for sink in parts.sinks:
            await asyncio.to_thread(sink.close)
        if parts.limiter is not None:
            await parts.limiter.close()

    async def __is_ready__(self) -> bool:
        return parts.predictor.ready

    @bentoml.api(route="/predict")
    async def predict(
        self, inputs: list[str], top_k: int = 1, model: str | None = None
    ) -> PredictV2Response:
        """Classify several texts: POST /api/v2/predict for BentoML's own clients."""
        return await for_bentoml(parts.predictor.many(inputs, top_k, model))


# mypy passes over what a decorator makes of a class.
Kaiten.add_asgi_middleware(Edge, parts=lambda: parts.edge)  # type: ignore[attr-defined]
Kaiten.mount_asgi_app(  # type: ignore[attr-defined]
    routes.app([*operations.routes(), *quality_routes.routes()])
)
