"""Holds each subject to its limits, before its body is read."""

from functools import partial

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.exchange import Exchange, exchange_of
from gateway.rate_limit.limiter import LimitedRequest, Limiter
from kaiten.errors import NotReady, QueueFull


class RateLimitMiddleware:
    """Admits an authenticated request if its subject is within its limits.

    Adds the rate-limit headers to every response.

    Raises:
        RateLimited: The subject has used up its requests or tokens.
        TooManyConcurrent: The subject has as many requests under way as it may have.

    """

    def __init__(self, app: ASGIApp, limiter: Limiter) -> None:
        self._app = app
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        principal = exchange.principal
        limited = None if principal is None else self._limiter.request(principal.identity)
        if limited is None:
            # A public route, or a subject without limits.
            await self._app(scope, receive, send)
            return
        exchange.reserve = limited.reserve
        # Before the answer: a caller that has it may send its next request at once.
        exchange.before_answer = partial(_release, limited)
        try:
            await limited.acquire()
            await self._app(scope, receive, send)
        except (QueueFull, NotReady):
            # The device process accepted the texts and computed none of them.
            await _release(limited, exchange, computed=False)
            raise
        finally:
            await _release(limited, exchange)


async def _release(limited: LimitedRequest, exchange: Exchange, *, computed: bool = True) -> None:
    if limited.released:
        return
    await limited.release(computed=computed)
    exchange.headers += limited.headers()
