"""uvicorn's HTTP/1.1 protocol without upgrades, and with configurable timeouts.

uvicorn's parser stops at a request that offers an upgrade, drops its body and reads the rest as
another request. It closes idle connections after 5 s and waits for an incomplete request forever.
BentoML passes on no setting that changes this.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import httptools
import structlog
import uvicorn
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from kaiten.files import descriptor_limit
from kaiten.sections import Gateway

logger = structlog.get_logger("kaiten.service")

# This module relies on private API. After an update, review uvicorn's httptools_impl.py, run
# tests/unit/gateway/test_http_protocol.py, and set the new version here.
TESTED_UVICORN = "0.54"
# uvicorn's default, which BentoML passes on if it is given no --timeout-keep-alive.
_DEFAULT_KEEP_ALIVE_S = 5
_INVALID = "Invalid HTTP request received."


class IdleConnections:
    """The connections of a worker without a request under way, the longest idle first.

    Beyond ``limit`` the longest idle one is closed, so that keep-alive connections leave file
    descriptors for new ones.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._transports: dict[asyncio.Transport, None] = {}

    def add(self, transport: asyncio.Transport) -> None:
        self._transports[transport] = None
        if len(self._transports) > self._limit:
            self.close_oldest()

    def close_oldest(self, exclude: asyncio.Transport | None = None) -> bool:
        """Close the longest idle connection except ``exclude``; return whether there was one."""
        oldest = next((each for each in self._transports if each is not exclude), None)
        if oldest is None:
            return False
        self.remove(oldest)
        oldest.close()
        return True

    def remove(self, transport: asyncio.Transport) -> None:
        self._transports.pop(transport, None)


class HttpProtocol(HttpToolsProtocol):
    """One connection, which ignores ``Upgrade`` fields, as RFC 9110 (7.8) allows.

    The head of a request that offers an upgrade is fed to a new parser without the offer. That
    parser reads the body and the requests that follow.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Gateway,
        idle: IdleConnections,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        if config.timeout_keep_alive == _DEFAULT_KEEP_ALIVE_S:
            # uvicorn declares an int but passes it to call_later, which takes a float.
            self.timeout_keep_alive = limits.keep_alive_s  # type: ignore[assignment]
        self._header_timeout_s = limits.header_timeout_s
        self._idle = idle
        # Whether a message is incomplete, and the loop time by which its head must be complete.
        self._in_message = False
        self._head_due: float | None = None
        self._head_without_upgrade = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._idle.add(transport)
        self._schedule_close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_keepalive_if_required()
        self._idle.remove(self.transport)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.logger.warning(_INVALID)
            self.send_400_response(_INVALID)
            return
        if self.cycle is None or self.cycle.response_complete:
            self._schedule_close()

    def _parse(self, data: bytes) -> None:
        rest = memoryview(data)
        while True:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as stop:
                rest = rest[stop.args[0] :]
                self._renew_parser()
                self.parser.feed_data(self._head_without_upgrade)
            else:
                return

    def _renew_parser(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        # As in uvicorn: bytes after a last request are ignored and no error.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _schedule_close(self) -> None:
        """Start the keep-alive timer or, within a head, the header timer."""
        if not self._in_message:
            self._head_due, wait_s = None, float(self.timeout_keep_alive)
        else:
            now = self.loop.time()
            # Counted from the first byte, so that a slow sender (Slowloris) gains no time.
            self._head_due = self._head_due or now + self._header_timeout_s
            wait_s = max(0.0, self._head_due - now)
        self.timeout_keep_alive_task = self.loop.call_later(wait_s, self.timeout_keep_alive_handler)

    def _should_upgrade(self) -> bool:
        """Return False: a WebSocket would bypass the whole middleware."""
        return False

    def on_message_begin(self) -> None:
        self._in_message = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            self._head_without_upgrade = self._write_head()
            return
        self._head_due = None
        self._idle.remove(self.transport)
        super().on_headers_complete()

    def _write_head(self) -> bytes:
        """Return the head of the current request without ``Upgrade`` fields."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            # The bytes after CONNECT are not HTTP, and this server is no proxy.
            raise httptools.HttpParserError("CONNECT")
        lines = [b"%s %s HTTP/%s" % (method, self.url, self.parser.get_http_version().encode())]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def on_message_complete(self) -> None:
        self._in_message = False
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # uvicorn starts the timer only if no pipelined request waits.
        if self.timeout_keep_alive_task is not None:
            self._idle.add(self.transport)


def install(limits: Gateway, connection: Callable[..., HttpProtocol] = HttpProtocol) -> None:
    """Make the servers that uvicorn starts in this process use ``connection`` as their protocol.

    With a version of uvicorn other than TESTED_UVICORN this logs a warning and changes nothing.
    """
    if uvicorn.__version__.rpartition(".")[0] != TESTED_UVICORN:
        logger.warning(
            "http_protocol_not_installed", uvicorn=uvicorn.__version__, tested=TESTED_UVICORN
        )
        return
    idle = IdleConnections(descriptor_limit() // 2)
    protocol = partial(connection, limits=limits, idle=idle)
    # uvicorn calls the entry to create a protocol, so a factory does as well as a class name.
    HTTP_PROTOCOLS["auto"] = protocol  # type: ignore[assignment]
