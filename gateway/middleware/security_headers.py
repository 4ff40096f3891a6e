"""Tells browsers what an answer may do: next to nothing."""

from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.access import STATIC_PREFIX
from gateway.docs_page import DOCS_POLICY

Headers = list[tuple[bytes, bytes]]

_PAGES = {"/", "/docs"}
_POLICY = "default-src 'none'; frame-ancestors 'none'"
# BentoML names itself in what it answers on its own.
_DROPPED = b"server"


class SecurityHeadersMiddleware:
    """Adds the security headers to every answer, and takes out the one that names the server.

    Strict-Transport-Security is sent only where this server itself speaks TLS.
    """

    def __init__(self, app: ASGIApp, *, tls: bool) -> None:
        self._app = app
        self._static = _headers(_POLICY, tls=tls)
        # What is answered is the caller's alone, and holds for now only.
        private = (b"cache-control", b"no-store")
        self._usual = [*self._static, private]
        self._page = [*_headers(DOCS_POLICY, tls=tls), private]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        added = self._added(scope["path"])

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*_kept(message["headers"]), *added]
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _added(self, path: str) -> Headers:
        if path in _PAGES:
            return self._page
        return self._static if path.startswith(STATIC_PREFIX) else self._usual


def _headers(policy: str, *, tls: bool) -> Headers:
    headers = {
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        # For browsers that do not know frame-ancestors.
        "x-frame-options": "DENY",
        "content-security-policy": policy,
    }
    if tls:
        headers["strict-transport-security"] = "max-age=31536000"
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def _kept(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    return [pair for pair in headers if pair[0] != _DROPPED]
