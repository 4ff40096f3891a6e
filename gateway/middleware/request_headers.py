"""Rejects requests by their headers, before any header is trusted."""

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.exchange import Exchange, exchange_of
from kaiten.errors import HeadersTooLarge, MalformedRequest, UnsupportedContentType
from kaiten.settings.models import GatewaySettings

# Two readers that differ about one of these can be made to see two different requests.
_ONE_VALUE = frozenset({b"host", b"content-length", b"authorization", b"content-type"})
# A colon, a space and the end of the line.
_AROUND_BYTES = 4
# Only sent to run code. BentoML's inner services speak the first; the other is an older name of it.
_PICKLES = (b"pickle", b"python-serialize")
RawHeaders = list[tuple[bytes, bytes]]


class RequestHeadersMiddleware:
    """Rejects too many or too large headers, contradictions, and pickles on every route.

    Raises:
        UnknownApiVersion: API-Version names no version of the API.
        ApiVersionMismatch: API-Version contradicts the path, or is sent more than once.
        HeadersTooLarge: There are too many headers, or too many bytes of them.
        MalformedRequest: A header that may come once contradicts itself.
        UnsupportedContentType: A content type names pickle, in whatever form.

    """

    def __init__(self, app: ASGIApp, limits: GatewaySettings) -> None:
        self._app = app
        self._max_headers = limits.max_headers
        self._max_bytes = limits.max_header_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope["headers"]
        self._check_version(exchange_of(scope))
        self._check_sizes(headers)
        self._check_content_types(headers)
        await self._app(scope, receive, send)

    @staticmethod
    def _check_version(exchange: Exchange) -> None:
        if exchange.version_error is not None:
            raise exchange.version_error

    def _check_sizes(self, headers: RawHeaders) -> None:
        if len(headers) > self._max_headers:
            raise HeadersTooLarge(self._max_headers, "headers")
        size = 0
        values: dict[bytes, bytes] = {}
        for name, value in headers:
            size += len(name) + len(value) + _AROUND_BYTES
            if name in _ONE_VALUE and values.setdefault(name, value) != value:
                raise MalformedRequest(name.decode("ascii").title())
        if size > self._max_bytes:
            raise HeadersTooLarge(self._max_bytes, "bytes")

    @staticmethod
    def _check_content_types(headers: RawHeaders) -> None:
        # All of them: parsers differ in which of two they use.
        for name, value in headers:
            if name == b"content-type" and any(kind in value.lower() for kind in _PICKLES):
                raise UnsupportedContentType
