"""Refuses too many headers, too large ones, and those that contradict each other."""

from starlette.types import ASGIApp, Receive, Scope, Send

from kaiten.errors import HeadersTooLarge, MalformedRequest
from kaiten.settings.models import GatewaySettings

# Two readers that differ about one of these can be made to see two different requests.
_ONE_VALUE = frozenset({b"host", b"content-length", b"authorization", b"content-type"})
# A colon, a space and the end of the line.
_AROUND_BYTES = 4


class HeadersMiddleware:
    """Checks the headers as a whole, before anybody reads one for what it says."""

    def __init__(self, app: ASGIApp, limits: GatewaySettings) -> None:
        self._app = app
        self._max_headers = limits.max_headers
        self._max_bytes = limits.max_header_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._check(scope["headers"])
        await self._app(scope, receive, send)

    def _check(self, headers: list[tuple[bytes, bytes]]) -> None:
        if len(headers) > self._max_headers:
            raise HeadersTooLarge(self._max_headers, "headers")
        size = 0
        seen: dict[bytes, bytes] = {}
        for name, value in headers:
            size += len(name) + len(value) + _AROUND_BYTES
            if name in _ONE_VALUE and seen.setdefault(name, value) != value:
                raise MalformedRequest(name.decode("ascii").title())
        if size > self._max_bytes:
            raise HeadersTooLarge(self._max_bytes, "bytes")
