"""Counts, times and logs each request once it is answered, and emits its predictions."""

import logging
import time
from collections.abc import Callable
from http import HTTPStatus

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import FIRST_ERROR_STATUS
from gateway.exchange import Exchange, exchange_of
from gateway.interfaces import EventSink, GatewayMetrics
from gateway.log_sampling import Sample
from gateway.routes import RouteKind

logger = structlog.get_logger("kaiten.request")
# What structlog hands its lines to, and what knows which levels are written.
_written = logging.getLogger("kaiten.request")

# Not ready yet, and too late, which a caller can bring about: no failures of ours.
_PASSING = {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}


class RequestMetricsMiddleware:
    """Sees every answer as the caller does: it stands outside the error middleware.

    It logs at most ``lines_per_s`` requests a second, as a line costs more than most other things
    that a request meets; the next line says how many were left out. Failures of the service
    are not limited. Request, trace and subject are added to a line that is written
    (monitors/logging/setup.py).
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: GatewayMetrics,
        events: EventSink,
        lines_per_s: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._events = events
        self._clock = clock
        self._sample = Sample(lines_per_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        route = exchange.route
        counted = exchange.spec is not None and exchange.spec.kind is RouteKind.MODEL
        if counted and route is not None:
            self._metrics.request_started(route)
        started = self._clock()
        try:
            await self._app(scope, receive, send)
        finally:
            seconds = self._clock() - started
            if counted and route is not None:
                self._metrics.request_answered(route, exchange.model_tag, exchange.status, seconds)
            if exchange.status < FIRST_ERROR_STATUS and exchange.events:
                self._events.emit(exchange.events)
            self._log(scope["method"], exchange, started, seconds)

    def _log(self, method: str, exchange: Exchange, started: float, seconds: float) -> None:
        level = _level(exchange)
        # The level first: a line that would not be written takes no other line's place.
        if _written.isEnabledFor(level) and (
            level >= logging.ERROR or self._sample.takes(started + seconds)
        ):
            logger.log(
                level,
                "request",
                method=method,
                route=exchange.route,
                status=exchange.status,
                duration_ms=round(seconds * 1000, 3),
                model=exchange.model_tag or None,
                left_out=self._sample.tell_left_out(),
            )


def _level(exchange: Exchange) -> int:
    """Return how much it matters."""
    if exchange.status in _PASSING:
        # A probe is answered so until the models are warm, and while the server drains; the log has
        # the reason of any other time.
        is_probe = exchange.spec is not None and exchange.spec.kind is RouteKind.PROBE
        return logging.DEBUG if is_probe else logging.WARNING
    if exchange.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return logging.ERROR
    # Probes come by the second.
    is_open = exchange.spec is not None and exchange.spec.scope is None
    return logging.DEBUG if is_open else logging.INFO
