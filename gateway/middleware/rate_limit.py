"""Holds each subject to its limits, before its body is read."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.rate_limit.limiter import LimitedRequest, Limiter
from kaiten.context import RequestContext, current
from kaiten.errors import NotReady, QueueFull


class LimitsMiddleware:
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
        context = current()
        if context.principal is None:
            # A public route.
            await self._app(scope, receive, send)
            return
        limited = self._limiter.request(context.principal.identity)

        async def release_and_send(message: Message) -> None:
            # Released first: a caller that has its answer may send its next request at once.
            if message["type"] == "http.response.start":
                await _release(limited, context)
            await send(message)

        context.reserve = limited.reserve
        try:
            await limited.acquire()
            await self._app(scope, receive, release_and_send)
        except (QueueFull, NotReady):
            # The device process accepted the texts and computed none of them.
            await _release(limited, context, computed=False)
            raise
        finally:
            # An outer middleware answers failures.
            await _release(limited, context)


async def _release(
    limited: LimitedRequest, context: RequestContext, *, computed: bool = True
) -> None:
    if limited.released:
        return
    await limited.release(computed=computed)
    context.headers += limited.headers()
