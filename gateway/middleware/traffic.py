"""Counts, times and logs each request once it is answered, and hands on what was predicted."""

import logging
import time
from collections.abc import Callable
from http import HTTPStatus

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.access import OPEN, ROUTES
from gateway.errors import FIRST_ERROR_STATUS
from gateway.ports import RecordSink, Traffic
from kaiten.context import current

logger = structlog.get_logger("kaiten.request")

_NO_ANSWER = 499


class TrafficMiddleware:
    """Sees every answer as the caller does: it stands outside the error envelope.

    It logs at most ``lines_per_s`` requests a second, as a line costs more than most other things
    that a request meets; the next line tells how many were left out. Failures of the service are
    logged always.
    """

    def __init__(
        self,
        app: ASGIApp,
        traffic: Traffic,
        sink: RecordSink,
        lines_per_s: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._app = app
        self._traffic = traffic
        self._sink = sink
        self._clock = clock
        self._sample = _Sample(lines_per_s)

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
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            seconds = self._clock() - started
            if counted:
                self._traffic.request_answered(path, context.model or "", status, seconds)
            if status < FIRST_ERROR_STATUS:
                self._sink.put(context.records)
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR or self._sample.takes(started):
                self._log(scope, status, seconds)

    def _log(self, scope: Scope, status: int, seconds: float) -> None:
        access = ROUTES.get(scope["path"])
        logger.log(
            # Probes come by the second; what a model is asked and what is unknown matters.
            logging.DEBUG if access == OPEN else logging.INFO,
            "request",
            method=scope["method"],
            # Never a path that the caller invented: it may hold anything.
            endpoint=None if access is None else scope["path"],
            status=status,
            duration_ms=round(seconds * 1000, 3),
            model=current().model,
            left_out=self._sample.tell_left_out(),
        )


class _Sample:
    """Takes the first few of each second."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._second = self._taken = self._left_out = 0

    def takes(self, now: float) -> bool:
        if int(now) != self._second:
            self._second, self._taken = int(now), 0
        if self._taken >= self._per_second:
            self._left_out += 1
            return False
        self._taken += 1
        return True

    def tell_left_out(self) -> int:
        """Return how many were left out since this was last asked."""
        left_out, self._left_out = self._left_out, 0
        return left_out
