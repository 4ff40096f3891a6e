"""Lets in what is listed in gateway/access.py, and nothing else."""

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.access import AccessTable
from kaiten.errors import MethodNotAllowed, UnknownRoute


class KnownRoutesMiddleware:
    """Refuses a path that is not listed, to the letter, and a method that is not the path's.

    Routers match more loosely than a table does: Starlette's take ``/predict`` with a line feed
    behind it for ``/predict``, and such a request would pass by the checks of that route.
    """

    def __init__(self, app: ASGIApp, table: AccessTable) -> None:
        self._app = app
        self._table = table

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        access = self._table.of(scope["path"])
        if access is None:
            raise UnknownRoute
        if scope["method"] not in access.methods:
            raise MethodNotAllowed(access.methods)
        await self._app(scope, receive, send)
