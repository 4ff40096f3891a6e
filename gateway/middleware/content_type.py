"""Refuses what is only ever sent to run code: pickles, on every route and for every method."""

from starlette.types import ASGIApp, Receive, Scope, Send

from kaiten.errors import UnsupportedContentType

# BentoML's inner services speak the first; the other is an older name for the same.
_REFUSED = (b"pickle", b"python-serialize")


class ContentTypeMiddleware:
    """Raises UnsupportedContentType for a content type that names pickle, in whatever form."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # All of them: which of two a parser heeds is its own affair.
        for name, value in scope["headers"]:
            if name == b"content-type" and _is_refused(value.lower()):
                raise UnsupportedContentType
        await self._app(scope, receive, send)


def _is_refused(content_type: bytes) -> bool:
    return any(each in content_type for each in _REFUSED)
