"""Holds each subject to its limits, before its body is read."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.limiting.limiter import Limiter, Visit
from kaiten.context import RequestContext, current
from kaiten.errors import NotReady, QueueFull


class LimitsMiddleware:
    """Lets in what authentication found a principal for, within its limits.

    RateLimited or TooManyConcurrent otherwise. Every answer tells where the caller stands.
    """

    def __init__(self, app: ASGIApp, limiter: Limiter) -> None:
        self._app = app
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = current()
        if context.principal is None:
            # A route that is open to all.
            await self._app(scope, receive, send)
            return
        visit = self._limiter.visit(context.principal.identity)

        async def leave_and_send(message: Message) -> None:
            # First leave: who has its answer may ask again at once, and is not its own rival.
            if message["type"] == "http.response.start":
                await _leave(visit, context)
            await send(message)

        context.reserve = visit.reserve
        try:
            await visit.enter()
            await self._app(scope, receive, leave_and_send)
        except (QueueFull, NotReady):
            # The model's process took it, and computed nothing of it.
            await _leave(visit, context, computed=False)
            raise
        finally:
            # A failure gets its answer further out.
            await _leave(visit, context)


async def _leave(visit: Visit, context: RequestContext, *, computed: bool = True) -> None:
    if visit.left:
        return
    await visit.leave(computed=computed)
    context.headers += visit.headers()
