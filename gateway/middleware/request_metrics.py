"""Counts, times and logs each request once it is answered, and hands on what was predicted."""

import logging
import time
from collections.abc import Callable
from http import HTTPStatus

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.access import ROUTES
from gateway.errors import FIRST_ERROR_STATUS
from gateway.interfaces import EventSink, Traffic
from gateway.log_sampling import Sample
from kaiten.context import current

logger = structlog.get_logger("kaiten.request")
# What structlog hands its lines to, and what knows which levels are written.
_written = logging.getLogger("kaiten.request")

_NO_ANSWER = 499
# Not ready yet, and too late, which a caller can bring about: no failures of ours.
_PASSING = {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}


class TrafficMiddleware:
    """Sees every answer as the caller does: it stands outside the error envelope.

    It logs at most ``lines_per_s`` requests a second, as a line costs more than most other things
    that a request meets; the next line tells how many were left out. Failures of the service
    are not limited. Request, trace and subject are added to a line that is written
    (monitors/logging/setup.py).
    """

    def __init__(
        self,
        app: ASGIApp,
        traffic: Traffic,
        events: EventSink,
        lines_per_s: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._app = app
        self._traffic = traffic
        self._events = events
        self._clock = clock
        self._sample = Sample(lines_per_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = current()
        path = scope["path"]
        access = ROUTES.get(path)
        counted = access is not None and access.model_route
        if counted:
            self._traffic.request_started(path)
        started = self._clock()
        # Stays so where the server itself ends the request before the answer begins.
        status = _NO_ANSWER

        async def send_and_note(message: Message) -> None:
            nonlocal status
            await send(message)
            if message["type"] == "http.response.start":
                status = message["status"]

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            seconds = self._clock() - started
            if counted:
                self._traffic.request_answered(path, context.model or "", status, seconds)
            if status < FIRST_ERROR_STATUS and context.events:
                self._events.emit(context.events)
            level = _level(context.endpoint, status)
            # First the level: what would not be written takes nobody's place.
            if _written.isEnabledFor(level) and (
                level >= logging.ERROR or self._sample.takes(started + seconds)
            ):
                self._log(level, scope, status, seconds)

    def _log(self, level: int, scope: Scope, status: int, seconds: float) -> None:
        logger.log(
            level,
            "request",
            method=scope["method"],
            endpoint=current().endpoint,
            status=status,
            duration_ms=round(seconds * 1000, 3),
            model=current().model,
            left_out=self._sample.tell_left_out(),
        )


def _level(endpoint: str | None, status: int) -> int:
    """Return how much it matters."""
    if status in _PASSING:
        return logging.WARNING
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return logging.ERROR
    # Probes come by the second.
    access = ROUTES.get(endpoint) if endpoint else None
    return logging.DEBUG if access and access.scope is None else logging.INFO
