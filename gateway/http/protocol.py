"""HTTP/1.1 on a worker's connections: uvicorn's protocol, without upgrades, and with bounds.

uvicorn's parser stops at a request that offers an upgrade: its body is lost, and the next
bytes are read as another request. Idle connections end after 5 s, and half a request is awaited
forever. Bytes that are not HTTP are answered in bare text, before the answers to earlier requests.
No setting that BentoML passes on changes any of it.
"""

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

import httptools
import structlog
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn._types import ASGI3Application, HTTPScope
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.http.channel import Channel
from gateway.middleware.early_answer import EARLY_ANSWER, Refusal
from kaiten.errors import KaitenError, MalformedRequest
from kaiten.files import descriptor_limit
from kaiten.settings.models import GatewaySettings

logger = structlog.get_logger("kaiten.service")

# This module relies on private API. After an update, read uvicorn's httptools_impl.py
# again, run tests/unit/gateway/http/test_protocol.py, and name the new version here.
TESTED_UVICORN = "0.54"
# uvicorn's own: what the command line passes on where it is given no --timeout-keep-alive.
_DEFAULT_KEEP_ALIVE_S = 5


class IdleConnections:
    """The connections of a worker that have no request under way, the longest idle first.

    Over ``limit``, the one that has been idle for longest is closed, so that connections kept alive
    leave file descriptors for new ones.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._transports: dict[asyncio.Transport, None] = {}

    def add(self, transport: asyncio.Transport) -> None:
        self._transports[transport] = None
        if len(self._transports) > self._limit:
            self.close_oldest()

    def close_oldest(self, exclude: asyncio.Transport | None = None) -> bool:
        """Close the one that has been idle for longest; False if there is none."""
        oldest = next((other for other in self._transports if other is not exclude), None)
        if oldest is None:
            return False
        self.remove(oldest)
        oldest.close()
        return True

    def remove(self, transport: asyncio.Transport) -> None:
        self._transports.pop(transport, None)


class HttpProtocol(HttpToolsProtocol):
    """One connection. Offers to upgrade are declined, as RFC 9110 (7.8) allows.

    A request with such an offer is parsed a second time without it, by a new parser, which reads
    its body and what follows as of any other request.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: GatewaySettings,
        idle: IdleConnections,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        if config.timeout_keep_alive == _DEFAULT_KEEP_ALIVE_S:
            # uvicorn declares an int, and hands it to call_later.
            self.timeout_keep_alive = limits.keep_alive_s  # type: ignore[assignment]
        self._header_timeout_s = limits.header_timeout_s
        self._idle = idle
        # Whether a message has begun and not ended, and until when its head must be whole.
        self._in_message = self._head_complete = False
        self._head_due: float | None = None
        self._head_without_upgrade = b""
        # Of a body with a Content-Length.
        self.body_bytes_left = 0
        # The request that is being answered; ``cycle`` is the last that has been parsed.
        self._active_cycle: RequestResponseCycle | None = None
        # The error for bytes that cannot be parsed, and whether it was sent.
        self._parse_error: Callable[[], KaitenError] = MalformedRequest
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._idle.add(transport)
        self._close_unless_continued()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_keepalive_if_required()
        self._idle.remove(self.transport)
        super().connection_lost(exc)
        # uvicorn tells only the last request on the connection.
        if self._active_cycle is not None and not self._active_cycle.response_complete:
            _disconnect(self._active_cycle)
        self.pipeline.clear()
        # One that was never started refers to this protocol: only the garbage collector would free
        # both.
        self.cycle = self._active_cycle = None  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self._refuse()
            return
        if self.cycle is None or self.cycle.response_complete:
            self._close_unless_continued()

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
        # As uvicorn does: bytes after a last request are ignored, without an error.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _close_unless_continued(self) -> None:
        """Close the connection after a while, unless a request comes, or its head becomes whole."""
        if not self._in_message:
            self._head_due, wait_s = None, float(self.timeout_keep_alive)
        else:
            now = self.loop.time()
            # The first byte counts: one that trickles in gains no time.
            self._head_due = self._head_due or now + self._header_timeout_s
            wait_s = max(0.0, self._head_due - now)
        # An early answer has set one as well.
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(wait_s, self.timeout_keep_alive_handler)

    def _refuse(self) -> None:
        """Answer what cannot be parsed in its turn, in the envelope, and close the connection."""
        self._refused = True
        self.transport.pause_reading()
        in_body, self._in_message = self._in_message and self._head_complete, False
        if in_body:
            # Its body is what cannot be parsed. It gets no other answer.
            if self.cycle is not self._active_cycle:
                self.pipeline.popleft()
            elif self.cycle.response_started:
                self.transport.close()
                return
            _disconnect(self.cycle)
        cycle = self.cycle = self._refusal_cycle()
        if self.pipeline or self._is_answering:
            self.pipeline.appendleft((cycle, self.app))
        else:
            self._start_asgi_task(cycle, self.app)

    @property
    def _is_answering(self) -> bool:
        cycle = self._active_cycle
        return not (cycle is None or cycle.response_complete or cycle.disconnected)

    def _refusal_cycle(self) -> RequestResponseCycle:
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "method": "GET",
            "root_path": self.root_path,
            "path": "",
            "raw_path": b"",
            "query_string": b"",
            # None that was parsed is to be believed.
            "headers": [],
            "state": self.app_state.copy(),
            EARLY_ANSWER: Refusal(self._parse_error()),
        }
        return RequestResponseCycle(
            scope=cast("HTTPScope", scope),
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=False,
            on_response=self.on_response_complete,
        )

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._active_cycle = cycle
        super()._start_asgi_task(cycle, closing_after_errors(cycle, app))

    def _should_upgrade(self) -> bool:
        """Tell that no protocol is switched to: a WebSocket would pass by the whole edge."""
        return False

    def on_message_begin(self) -> None:
        self._in_message, self._head_complete = True, False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            self._head_without_upgrade = self._write_head()
            return
        self._head_due = None
        self.body_bytes_left = declared_bytes(self.headers)
        self._idle.remove(self.transport)
        super().on_headers_complete()
        # Not before: uvicorn parses the target now, and a head that it refuses has no answer yet.
        self._head_complete = True

    def _write_head(self) -> bytes:
        """Return the head of the request at hand without its offers to upgrade."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            # The bytes after it are not HTTP, and there is nothing here to connect to.
            raise httptools.HttpParserError("CONNECT")
        lines = [b"%s %s HTTP/%s" % (method, self.url, self.parser.get_http_version().encode())]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def on_body(self, body: bytes) -> None:
        self.body_bytes_left = max(0, self.body_bytes_left - len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_message = False
        self.body_bytes_left = 0
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # uvicorn's timer runs if no other request waits for its turn.
        if self.timeout_keep_alive_task is not None:
            self._idle.add(self.transport)


def declared_bytes(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Return the Content-Length of raw headers, 0 if they have none that is a number."""
    length = next((value for name, value in headers if name == b"content-length"), b"0")
    return int(length) if length.isdigit() else 0


def _disconnect(cycle: RequestResponseCycle) -> None:
    """Tell a request's handler that its caller has gone, and drop what it sends."""
    cycle.disconnected = True
    cycle.message_event.set()


def closing_after_errors(cycle: RequestResponseCycle, app: ASGI3Application) -> ASGI3Application:
    """Return the app, which closes the connection where an answer had to be broken off.

    The caller left, or was too slow to take the answer: uvicorn would log a traceback.
    """

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await cast("ASGIApp", app)(scope, receive, send)
        except KaitenError:
            cycle.transport.close()
            _disconnect(cycle)

    return cast("ASGI3Application", run)


def install(
    limits: GatewaySettings, connection: Callable[..., HttpProtocol] = HttpProtocol
) -> None:
    """Let the servers that uvicorn starts in this process speak HTTP by ``connection``.

    A version of uvicorn that it was not tested with keeps its own protocol.
    """
    if uvicorn.__version__.rpartition(".")[0] != TESTED_UVICORN:
        logger.warning(
            "http_protocol_not_installed", uvicorn=uvicorn.__version__, tested=TESTED_UVICORN
        )
        return
    idle = IdleConnections(descriptor_limit() // 2)
    connect = partial(connection, limits=limits, idle=idle)

    def protocol(**options: Any) -> Channel:  # noqa: ANN401  uvicorn's
        http = connect(**options)
        return Channel(http, limits.body_timeout_s, http)

    # It takes a class, or what makes its instances, as well as the name of one.
    HTTP_PROTOCOLS["auto"] = protocol  # type: ignore[assignment]
