"""Bounds the size of a request's head while it is parsed, and drops trailers.

uvicorn collects the target, headers and trailers without a limit, and calls the application only
when they are complete. It adds trailers to the headers, which RFC 9110 (6.5.1) forbids: a
credential there has passed no proxy's checks.
"""

from functools import partial
from typing import Any

from gateway.http.protocol import HttpProtocol
from kaiten.errors import HeadersTooLarge
from kaiten.settings.models import GatewaySettings

# A head that is over the settings by less than this is refused without closing the connection.
_SPARE_BYTES = 64 * 1024
_SPARE_HEADERS = 1000


class HeadTooLarge(Exception):
    """The head is over its bound. Raised inside the parser, it ends the connection."""


class BoundedProtocol(HttpProtocol):
    """One connection, which is answered 431 and closed if a head is far over the limits."""

    def __init__(self, *args: Any, limits: GatewaySettings, **options: Any) -> None:  # noqa: ANN401  uvicorn's
        super().__init__(*args, limits=limits, **options)
        self._max_bytes = limits.max_header_bytes + _SPARE_BYTES
        self._max_headers = limits.max_headers + _SPARE_HEADERS
        self._head_bytes = self._head_fields = 0
        # Received since the parser's last callback: it buffers an incomplete header.
        self._withheld_bytes = 0
        self._too_many_bytes = partial(HeadersTooLarge, limits.max_header_bytes, "bytes")
        self._too_many_headers = partial(HeadersTooLarge, limits.max_headers, "headers")

    def data_received(self, data: bytes) -> None:
        self._withheld_bytes += len(data)
        super().data_received(data)
        if self._withheld_bytes > self._max_bytes and not self._refused:
            self._parse_error = self._too_many_bytes
            self._refuse()

    def on_message_begin(self) -> None:
        self._head_bytes = self._head_fields = self._withheld_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_fields += 1
        self._count(name + value)
        if not self._head_complete:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._withheld_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._withheld_bytes = 0
        super().on_message_complete()

    def _count(self, part: bytes) -> None:
        self._withheld_bytes = 0
        self._head_bytes += len(part)
        if self._head_bytes > self._max_bytes:
            self._parse_error = self._too_many_bytes
            raise HeadTooLarge
        if self._head_fields > self._max_headers:
            self._parse_error = self._too_many_headers
            raise HeadTooLarge
