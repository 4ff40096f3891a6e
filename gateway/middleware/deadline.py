"""Ends a request that takes too long, reading its body and waiting to start included."""

import asyncio
import time

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.admission.deadlines import request_deadline
from gateway.exchange import exchange_of
from kaiten.errors import DeadlineExceeded


class DeadlineMiddleware:
    """Gives each request its deadline. What an expired request has queued is not computed.

    Raises:
        DeadlineExceeded: The deadline has passed.
        InvalidInput: X-Request-Timeout-Ms is not a number.

    """

    def __init__(self, app: ASGIApp, limit_s: float) -> None:
        self._app = app
        self._limit_s = limit_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        exchange.deadline = request_deadline(scope, exchange.spec, self._limit_s)
        try:
            async with asyncio.timeout(exchange.deadline - time.monotonic()) as timeout:
                await self._app(scope, receive, send)
        except TimeoutError:
            if not timeout.expired():
                raise
            raise DeadlineExceeded(exchange.retry_after_s) from None
