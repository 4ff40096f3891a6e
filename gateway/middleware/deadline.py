"""Ends a request that takes too long, reading its body and waiting to start included."""

import asyncio
import time

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.admission.deadlines import deadline
from kaiten.context import current
from kaiten.errors import DeadlineExceeded


class DeadlineMiddleware:
    """Gives each request its deadline, and raises DeadlineExceeded when it has passed.

    What the request has queued is not computed any more.
    """

    def __init__(self, app: ASGIApp, limit_s: float) -> None:
        self._app = app
        self._limit_s = limit_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = current()
        context.deadline = deadline(scope, self._limit_s)
        try:
            async with asyncio.timeout(context.deadline - time.monotonic()) as timeout:
                await self._app(scope, receive, send)
        except TimeoutError:
            if not timeout.expired():
                raise
            raise DeadlineExceeded(context.retry_after_s) from None
