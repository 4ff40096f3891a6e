"""What Kaiten changes in BentoML and uvicorn, as no setting of theirs does it.

All of it happens while the service module is imported: before BentoML starts workers, builds its
app or reports usage.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.server.http import traffic
from bentoml._internal.utils.analytics import usage_stats
from bentoml.exceptions import BentoMLException
from opentelemetry.util.http import ExcludeList

from gateway.admission.protocol import TURNS_S, AdmissionProtocol
from gateway.http import protocol, server
from gateway.http.backlog import Turns
from gateway.middleware.timeout_backstop import BackStopMiddleware
from kaiten.errors import SetupError
from kaiten.installation import require_unix
from kaiten.settings.loader import Settings, load_settings
from kaiten.settings.models import GatewaySettings
from monitors.logging.setup import configure_logging
from monitors.metrics.worker_files import server_directory
from server import supervisor
from server.worker import Worker


@contextmanager
def setup_errors_for_bentoml() -> Iterator[None]:
    """Turn a SetupError into BentoML's error, whose message it prints without a traceback."""
    try:
        yield
    except SetupError as error:
        raise BentoMLException(error.message) from None


def apply(worker: Callable[[], Worker]) -> Settings:
    """Change BentoML and uvicorn in this process, by the settings, and return those.

    ``worker`` is called with each connection.

    Raises:
        BentoMLException: The settings are invalid, BentoML's supervisor cannot be taken off the
            network, or this is Windows.

    """
    _patch_bentoml()
    with setup_errors_for_bentoml():
        require_unix("serve")
        supervisor.secure()
        settings = load_settings()
    configure_logging(settings.logging)
    _patch_uvicorn(settings.gateway, worker)
    return settings


def _patch_bentoml() -> None:
    # `bentoml serve` has asked whether it may report usage, and keeps the answer, before it imports
    # the service; importing kaiten has said no since.
    usage_stats.do_not_track.cache_clear()
    # It has one directory for the metrics of all servers, and clears it when one starts.
    shared = Path(BentoMLContainer.prometheus_multiproc_dir.get())
    BentoMLContainer.prometheus_multiproc_dir.set(str(server_directory(shared)))
    # Without an exporter, a trace costs each request more than the rest of the edge.
    if BentoMLContainer.tracing.exporter_type.get() is None:
        BentoMLContainer.tracing_excluded_urls.set(ExcludeList([".*"]))
    # Its own keeps a timer for every request until its time is up; no setting replaces or removes
    # it.
    traffic.TimeoutMiddleware = BackStopMiddleware  # type: ignore[misc, assignment]


def _patch_uvicorn(limits: GatewaySettings, worker: Callable[[], Worker]) -> None:
    """Let uvicorn accept and parse connections by the gateway's server and protocol."""
    server.install(limits, lambda: worker().roster)
    max_connections = server.max_connections()
    crowd, turns = protocol.IdleConnections(server.MAX_CROWD), Turns(TURNS_S)

    def connect(**options: Any) -> AdmissionProtocol:  # noqa: ANN401  uvicorn's
        return AdmissionProtocol(
            **options,
            admission=worker().admission,
            max_connections=max_connections,
            crowd=crowd,
            turns=turns,
            workers=worker().roster,
        )

    protocol.install(limits, connect)
