"""Answers the prediction routes here; everything else goes on to BentoML's app."""

from collections.abc import Mapping

from starlette.types import ASGIApp, Receive, Scope, Send


class DirectMiddleware:
    """Calls the handler of a path itself: BentoML's context and two routers cost more than it."""

    def __init__(self, app: ASGIApp, handlers: Mapping[str, ASGIApp]) -> None:
        self._app = app
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._handlers.get(scope["path"], self._app)(scope, receive, send)
