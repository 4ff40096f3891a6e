"""Ends a request that takes too long, reading its body included."""

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from kaiten.errors import DeadlineExceeded


class DeadlineMiddleware:
    """Raises DeadlineExceeded after ``limit_s`` seconds; what the request queued is cancelled."""

    def __init__(self, app: ASGIApp, limit_s: float) -> None:
        self._app = app
        self._limit_s = limit_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._limit_s) as deadline:
                await self._app(scope, receive, send)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise DeadlineExceeded(self._limit_s) from None
