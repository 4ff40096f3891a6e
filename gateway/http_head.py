"""Bounds what uvicorn parses: the head of a request, and the bytes of one turn of the event loop.

uvicorn collects a target, headers and trailers without a limit, and calls the application only once
they are whole. It parses all that a read brings at once, which can be thousands of chunks or
requests.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl

from gateway import http_protocol
from gateway.http_protocol import HttpProtocol
from kaiten.sections import Gateway

# What is over the settings, but not by so much, is refused in the one envelope, with a reason.
_SPARE_BYTES = 64 * 1024
_SPARE_HEADERS = 1000
# Chunks of a byte each, which are the most work for their size, take a few milliseconds.
_TURN_BYTES = 16 * 1024
_MESSAGE = b"The headers are too large."
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: text/plain; charset=utf-8\r\n"
    b"content-length: %d\r\n"
    b"connection: close\r\n\r\n%s" % (len(_MESSAGE), _MESSAGE)
)


class HeadTooLarge(Exception):
    """The head is over its bound; the parser stops, and the connection ends."""


class _Flow(FlowControl):
    """Has the protocol decide what reading goes on with: bytes that wait, or the connection's."""

    def __init__(self, transport: asyncio.Transport, on_resume: Callable[[], None]) -> None:
        super().__init__(transport)
        self._on_resume = on_resume

    def resume_reading(self) -> None:
        if self.read_paused:
            self.read_paused = False
            self._on_resume()


class BoundedProtocol(HttpProtocol):
    """One connection.

    It is answered 431 and closed once a head is far over the limits. What a read brings is parsed
    in parts, between which other connections have their turns.
    """

    def __init__(self, *args: Any, limits: Gateway, **options: Any) -> None:  # noqa: ANN401  uvicorn's
        super().__init__(*args, limits=limits, **options)
        self._max_bytes = limits.max_header_bytes + _SPARE_BYTES
        self._max_headers = limits.max_headers + _SPARE_HEADERS
        self._head_bytes = self._head_fields = 0
        # Received since the parser last handed something on: it keeps a header until its end.
        self._withheld_bytes = 0
        self._head_too_large = False
        self._waiting: deque[bytes] = deque()
        self._turn: asyncio.Handle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport, self._go_on)

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiting.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._waiting and len(data) <= _TURN_BYTES:
            self._feed(data)
            return
        self._waiting.extend(
            data[start : start + _TURN_BYTES] for start in range(0, len(data), _TURN_BYTES)
        )
        self.transport.pause_reading()
        if self._turn is None:
            self._take_turn()

    def _take_turn(self) -> None:
        """Parse one part of what waits, and have the next turn as soon as others had theirs."""
        self._turn = None
        if self._waiting and not self.flow.read_paused:
            self._feed(self._waiting.popleft())
        if self.transport.is_closing():
            self._waiting.clear()
        elif not self.flow.read_paused:
            self._go_on()

    def _go_on(self) -> None:
        if not self._waiting:
            self.transport.resume_reading()
        elif self._turn is None:
            self._turn = self.loop.call_soon(self._take_turn)

    def _feed(self, data: bytes) -> None:
        self._withheld_bytes += len(data)
        super().data_received(data)
        if self._withheld_bytes > self._max_bytes and not self._head_too_large:
            self._head_too_large = True
            self.send_400_response("")

    def send_400_response(self, msg: str) -> None:
        if not self._head_too_large:
            super().send_400_response(msg)
            return
        self.transport.write(_TOO_LARGE)
        self.transport.close()

    def on_message_begin(self) -> None:
        self._head_bytes = self._head_fields = self._withheld_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_fields += 1
        self._count(name + value)
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
        if self._head_bytes > self._max_bytes or self._head_fields > self._max_headers:
            self._head_too_large = True
            raise HeadTooLarge


def install(limits: Gateway) -> None:
    """Let the servers that uvicorn starts in this process parse requests within bounds."""
    http_protocol.install(limits, BoundedProtocol)
