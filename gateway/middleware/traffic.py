"""Counts, times and logs each request once it is answered, and hands on what was predicted."""

import logging
import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.access import OPEN, ROUTES
from gateway.errors import FIRST_ERROR_STATUS
from gateway.ports import RecordSink, Traffic
from kaiten.context import current

logger = structlog.get_logger("kaiten.request")

_NO_ANSWER = 499


class TrafficMiddleware:
    """Sees every answer as the caller does: it stands outside the error envelope."""

    def __init__(self, app: ASGIApp, traffic: Traffic, sink: RecordSink) -> None:
        self._app = app
        self._traffic = traffic
        self._sink = sink

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = current()
        path = scope["path"]
        access = ROUTES.get(path)
        counted = access is not None and access.model_route
        if counted:
            self._traffic.request_started(path)
        started = time.perf_counter()
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
            seconds = time.perf_counter() - started
            if counted:
                self._traffic.request_answered(path, context.model or "", status, seconds)
            if status < FIRST_ERROR_STATUS:
                self._sink.put(context.records)
            # Probes come by the second; what a model is asked and what is unknown matters.
            level = logging.DEBUG if access == OPEN else logging.INFO
            logger.log(
                level,
                "request",
                method=scope["method"],
                # Never a path that the caller invented: it may hold anything.
                endpoint=None if access is None else path,
                status=status,
                duration_ms=round(seconds * 1000, 3),
                model=context.model,
            )
