"""The BentoML service: what it does at its start, for a request and at its end.

The parts that do it are built and joined in server/worker.py.
"""

import asyncio
import gc
import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from typing import cast

import bentoml
import structlog
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.server.http import traffic
from bentoml._internal.utils.analytics import usage_stats
from bentoml.exceptions import BentoMLException
from bentoml.images import Image
from opentelemetry.util.http import ExcludeList

from gateway.admission.protocol import TURNS_S, AdmissionProtocol
from gateway.app import Edge
from gateway.http import protocol, server
from gateway.http.backlog import Turns
from gateway.middleware.timeout_backstop import BackStopMiddleware
from gateway.routes import for_bentoml
from gateway.schemas import PredictV2Response
from gateway.security_log import security_log
from kaiten import tls
from kaiten.errors import SetupError
from kaiten.settings.loader import load_settings
from kaiten.settings.snapshot import release_snapshot
from monitors.logging import setup, writer
from monitors.metrics.worker_files import server_directory
from server import supervisor
from server.preflight import prepare
from server.worker import Parts, Process

# `bentoml serve` has asked whether it may report usage, and keeps the answer, before it imports
# this module; importing kaiten has said no since.
usage_stats.do_not_track.cache_clear()

# BentoML has one directory for the metrics of all servers, and clears it when one starts.
shared = Path(BentoMLContainer.prometheus_multiproc_dir.get())
own_metrics = server_directory(shared)
BentoMLContainer.prometheus_multiproc_dir.set(str(own_metrics))

# Without an exporter, a trace costs each request more than the rest of the edge, for nobody.
if BentoMLContainer.tracing.exporter_type.get() is None:
    BentoMLContainer.tracing_excluded_urls.set(ExcludeList([".*"]))

# Its own keeps a timer for every request until its time is up; no setting replaces or removes it.
traffic.TimeoutMiddleware = BackStopMiddleware  # type: ignore[misc, assignment]

logger = structlog.get_logger("kaiten.service")

# Not plain "kaiten": `bentoml serve kaiten:1.2.3` would first import the package of that name, from
# wherever it is installed, and then serve the bento with that code.
NAME = "kaiten_service"
# BentoML's own "debian" would put a compiler into it, for packages that have all been compiled.
IMAGE = Image(base_image="python:3.11-slim-bookworm", python_version="3.11", distro="python").run(
    "command -v uv >/dev/null || pip install --no-cache-dir uv==0.13.9"
)
_GRACE_S = 5
# Python's default of 5 ms is what a thread back from inference waits for a busy event loop: as long
# as a small batch takes to compute.
_SWITCH_INTERVAL_S = 0.0001
# Collections of young garbage before one that walks through all objects, a hundred times Python's
# default: requests leave no cycles, and beside a full queue such a walk holds the event loop for
# 150 ms.
_FULL_COLLECTION = 1000


def _worker() -> int:
    # BentoML counts its workers from 1.
    return (bentoml.server_context.worker_index or 1) - 1


def _end_worker() -> None:
    """End this process in good order, or at once where callers hold it up; another replaces it."""
    serving = parts.settings.serving
    patience_s = serving.drain_s + serving.request_timeout_s + _GRACE_S
    last_resort = threading.Timer(patience_s, _leave)
    last_resort.daemon = True
    last_resort.start()
    signal.raise_signal(signal.SIGTERM)


def _is_ready() -> bool:
    return parts.admission.ready


def _leave() -> None:
    writer.flush()
    os._exit(1)


try:
    supervisor.secure()
    parts = Parts(
        load_settings(),
        Process(NAME, _worker, lambda: bentoml.server_context.bento_version, _end_worker),
    )
except SetupError as error:
    raise BentoMLException(error.message) from None
setup.configure(parts.settings.logging)
server.install(parts.settings.gateway)
protocol.install(
    parts.settings.gateway,
    partial(
        AdmissionProtocol,
        admission=parts.admission,
        max_connections=server.max_connections(),
        crowd=protocol.IdleConnections(server.MAX_CROWD),
        turns=Turns(TURNS_S),
    ),
)


# The values of configuration.yaml, for a `bentoml serve` that names no configuration file.
@bentoml.service(
    name=NAME,
    workers=1,
    traffic={"timeout": 60},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    http={"host": "0.0.0.0" if parts.settings.in_production else "127.0.0.1"},  # noqa: S104  a container's own address
    ssl=tls.for_bentoml(parts.settings.tls),
    image=IMAGE,
)
class Kaiten:
    """Predictions by fine-tuned models: batched, authenticated, measured and profiled."""

    def __init__(self) -> None:
        writer.detach_console()
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        # Once more: BentoML has configured its own since this module was imported.
        setup.configure(parts.settings.logging, parts.pseudonyms, _worker() + 1)
        try:
            parts.build()
        except SetupError as error:
            # BentoML's own lines are a traceback; the supervisor tries again, with the same end.
            logger.error("worker_not_started", reason=error.message)  # noqa: TRY400  that is all
            raise
        release_snapshot()

    @bentoml.on_deployment
    @staticmethod
    def check_once() -> None:
        """Stop before any worker starts if a model, its engine or the secret is missing."""
        # The workers' supervisor logs too, and must not wait either.
        writer.detach_console()
        setup.configure(parts.settings.logging)
        services = BentoMLContainer.config.services.get()
        try:
            prepare(parts, services, NAME, own_metrics.resolve())
        except SetupError as error:
            raise BentoMLException(error.message) from None

    @bentoml.on_startup
    async def start(self) -> None:
        """Warm the models up beside the server, so that liveness and readiness tell them apart."""
        for sink in parts.sinks:
            sink.start()
        parts.file_watch.start()
        parts.drain.start()
        self.watching = [
            *parts.tokens.start(),
            asyncio.create_task(parts.roster.publish(_is_ready)),
        ]
        self.warming = [asyncio.create_task(runner.start()) for runner in parts.runners]
        # What is here by now stays: the collector need not walk through it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*gc.get_threshold()[:2], _FULL_COLLECTION)

    @bentoml.on_shutdown
    async def stop(self) -> None:
        """Refuse what waits and write what was profiled."""
        for task in self.watching:
            task.cancel()
        await asyncio.gather(*self.watching, return_exceptions=True)
        await asyncio.gather(*(runner.close() for runner in parts.runners), *self.warming)
        parts.file_watch.close()
        for sink in parts.sinks:
            await asyncio.to_thread(sink.close)
        if parts.limiter is not None:
            await parts.limiter.close()
        security_log.end_period()
        # The signal that ends this process ends its threads.
        await asyncio.to_thread(writer.flush)
        if any(runner.hung for runner in parts.runners):
            # Python would wait for the thread that hangs.
            os._exit(1)

    async def __is_ready__(self) -> bool:
        return _is_ready()

    @bentoml.api(route="/predict")
    async def predict(
        self, inputs: list[str], top_k: int = 1, model: str | None = None
    ) -> PredictV2Response:
        """Classify several texts: POST /api/v2/predict for BentoML's own clients.

        The edge answers this route itself; the declaration is what BentoML's clients learn it from.
        """
        answer = await for_bentoml(parts.predictor.many(inputs, top_k, model))
        # BentoML hands a Response on, whatever type it has declared.
        return cast("PredictV2Response", answer)


# mypy passes over what a decorator makes of a class.
Kaiten.add_asgi_middleware(Edge, parts=lambda: parts.edge)  # type: ignore[attr-defined]
Kaiten.mount_asgi_app(parts.app)  # type: ignore[attr-defined]
