"""Ends a request that takes too long, reading its body included."""

import asyncio
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.access import ROUTES
from kaiten.context import current
from kaiten.errors import DeadlineExceeded, Detail, InvalidInput

HEADER = "X-Request-Timeout-Ms"
MAX_DIGITS = 9


class DeadlineMiddleware:
    """Gives each request its deadline, and raises DeadlineExceeded when it has passed.

    That is ``limit_s`` seconds from here, or, on a model's route, what the caller asks for in
    X-Request-Timeout-Ms if that is less. What the request has queued is not computed any more.
    """

    def __init__(self, app: ASGIApp, limit_s: float) -> None:
        self._app = app
        self._limit_s = limit_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        access = ROUTES.get(scope["path"])
        # Elsewhere anybody could ask for work, on a thread that no deadline ends, and not wait.
        heeded = access is not None and access.model_route
        limit_s = self._limit(Headers(scope=scope).get(HEADER) if heeded else None)
        context = current()
        context.deadline = time.monotonic() + limit_s
        try:
            async with asyncio.timeout(limit_s) as deadline:
                await self._app(scope, receive, send)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise DeadlineExceeded(context.retry_after_s) from None

    def _limit(self, asked: str | None) -> float:
        """Return the request's limit in seconds; InvalidInput for a header that is no number."""
        if asked is None:
            return self._limit_s
        digits = asked.isascii() and asked.isdigit() and len(asked) <= MAX_DIGITS
        if not digits or int(asked) == 0:
            reason = "is no whole number of milliseconds from 1 to 999999999"
            raise InvalidInput([Detail(HEADER, reason)])
        return min(self._limit_s, int(asked) / 1000)
