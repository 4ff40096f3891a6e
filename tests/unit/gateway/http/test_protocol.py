import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from http.client import parse_headers
from io import BytesIO
from typing import Any, cast

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.testing import capture_logs
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.server import ServerState

from gateway.http.channel import Channel
from gateway.http.protocol import TESTED_UVICORN, HttpProtocol, IdleConnections, install
from gateway.middleware.early_answer import EarlyAnswerMiddleware
from gateway.middleware.errors import ErrorsMiddleware
from gateway.middleware.request_context import RequestContextMiddleware
from gateway.response_headers import ResponseHeaders
from gateway.routes import RouteTable
from kaiten.errors import DeadlineExceeded
from kaiten.settings.loader import Settings
from kaiten.settings.models import GatewaySettings

BODY = b'{"text": "Where is my parcel?"}'
CHUNKED_BODY = b"7\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (BODY[:7], len(BODY) - 7, BODY[7:])
LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = "Transfer-Encoding: chunked"
LAST = b"GET /last HTTP/1.1\r\nHost: kaiten\r\n\r\n"
OFFERS = {
    "h2c": ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"],
    "lower case": ["connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMA"],
    "upper case": ["CONNECTION: UPGRADE", "UPGRADE: H2C"],
    "alone": ["Connection: Upgrade", "Upgrade: h2c"],
    "websocket": [
        "Connection: keep-alive, Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ],
    "TLS": ["Connection: Upgrade", "Upgrade: TLS/1.0"],
    "unknown": ["Upgrade: kaiten/9", "Connection: Upgrade"],
    "several": ["Connection: Upgrade", "Upgrade: h2c, websocket, TLS/1.2"],
    "twice": ["Connection: Upgrade", "Upgrade: websocket", "Upgrade: h2c"],
    "not in Connection": ["Upgrade: h2c"],
    "without a protocol": ["Connection: Upgrade"],
    "empty": ["Connection: Upgrade", "Upgrade:"],
}


class Wire(asyncio.Transport):
    """A connection that keeps the bytes written to it."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 4711), "sockname": ("127.0.0.1", 3000)})
        self.written = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Timer:
    """A timer that the test rings."""

    def __init__(self, due: float, callback: Callable[[], None]) -> None:
        self.due, self.callback, self.cancelled = due, callback, False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """The event loop that runs, with a time of its own."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def create_task(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(coroutine)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + seconds, callback))
        return self.timers[-1]

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        for timer in self.timers:
            if timer.due <= self.now and not timer.cancelled:
                timer.cancelled = True
                timer.callback()


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the request."""
    assert scope["type"] == "http"
    request = Request(scope, receive)
    echo = {
        "method": request.method,
        "path": request.url.path,
        "body": (await request.body()).decode(),
        "headers": sorted(request.headers),
    }
    await JSONResponse(echo)(scope, receive, send)


def edge(app: ASGIApp) -> ASGIApp:
    """Return the app within the layers that put a refusal into the envelope."""
    settings = Settings.model_construct()
    table = RouteTable((), settings)
    return RequestContextMiddleware(
        ErrorsMiddleware(EarlyAnswerMiddleware(app)),
        table,
        ResponseHeaders(table, settings),
        lambda: False,
    )


class Server:
    """A worker's protocol, with connections that the test makes."""

    def __init__(
        self, limit: int = 100, keep_alive_s: int = 5, app: ASGIApp = app, **limits: float
    ) -> None:
        self.clock = Clock()
        self._limits = GatewaySettings.model_validate(limits)
        self._idle = IdleConnections(limit)
        self._config = uvicorn.Config(
            edge(app), log_config=None, lifespan="off", timeout_keep_alive=keep_alive_s
        )
        self._config.load()
        self._state = ServerState()

    def connect(self) -> tuple[HttpProtocol, Wire]:
        loop = cast("asyncio.AbstractEventLoop", self.clock)
        protocol = HttpProtocol(
            self._config, self._state, {}, loop, limits=self._limits, idle=self._idle
        )
        wire = Wire()
        protocol.connection_made(wire)
        return protocol, wire

    async def answer(self) -> None:
        """Wait until every request that has come is answered."""
        while self._state.tasks:
            await asyncio.gather(*self._state.tasks)
            await asyncio.sleep(0)


def request(method: str, *headers: str, path: str = "/first") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: kaiten", *headers, "", ""]).encode()


def answers(wire: Wire) -> Iterator[dict[str, Any]]:
    """Yield the echo of the request in each answer."""
    for answer in wire.written.split(b"HTTP/1.1 ")[1:]:
        assert answer.startswith(b"200 ")
        yield json.loads(answer.partition(b"\r\n\r\n")[2])


async def wire_after(*packets: bytes) -> Wire:
    server = Server()
    protocol, wire = server.connect()
    for packet in packets:
        if not wire.closed:
            protocol.data_received(packet)
            # A request whose body has not come yet waits for it.
            if not protocol._in_message:
                await server.answer()
    return wire


@pytest.mark.parametrize("method", ["POST", "GET", "PUT"])
@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.parametrize(
    ("framing", "body"), [(LENGTH, BODY), (CHUNKED, CHUNKED_BODY)], ids=["length", "chunked"]
)
async def test_an_offer_to_upgrade_is_declined_and_the_request_answered(
    method: str, offer: list[str], framing: str, body: bytes
) -> None:
    head = request(method, *offer, framing)
    requests = head + body + LAST
    one_packet = await wire_after(requests)
    for wire in (
        one_packet,
        await wire_after(head, body + LAST),
        await wire_after(head + body, LAST),
        await wire_after(*(requests[at : at + 1] for at in range(len(requests)))),
    ):
        first, last = answers(wire)
        assert (first["method"], first["path"], first["body"]) == (method, "/first", BODY.decode())
        assert (last["method"], last["path"], last["body"]) == ("GET", "/last", "")
        assert not wire.closed
        if len(offer) > 1 and "Upgrade:" not in offer:
            assert "upgrade" not in first["headers"]


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
async def test_requests_with_offers_may_be_pipelined(offer: list[str]) -> None:
    post = request("POST", *offer, LENGTH) + BODY
    empty = request("GET", *offer, path="/empty")
    echoes = [*answers(await wire_after((post + empty) * 50 + LAST))]
    assert [(echo["path"], echo["body"]) for echo in echoes] == [
        *[("/first", BODY.decode()), ("/empty", "")] * 50,
        ("/last", ""),
    ]


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
async def test_a_body_is_never_read_as_a_request(offer: list[str]) -> None:
    hidden = request("GET", path="/hidden")
    head = request("POST", *offer, f"Content-Length: {len(hidden)}")
    for packets in ([head + hidden + LAST], [head, hidden, LAST]):
        echoes = [*answers(await wire_after(*packets))]
        assert [echo["path"] for echo in echoes] == ["/first", "/last"]


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.parametrize(
    "framing",
    [
        ["Content-Length: 5", CHUNKED],
        [CHUNKED, "Content-Length: 5"],
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: 5, 6"],
        ["Content-Length: +5"],
        ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding : chunked"],
        ["Content-Length: 5", "Upgrade : h2c"],
        ["X: a\r\n b\r\n c"],
    ],
)
async def test_an_offer_makes_no_strange_length_good(offer: list[str], framing: list[str]) -> None:
    wire = await wire_after(request("POST", *offer, *framing) + b"0\r\n\r\n" + LAST)
    assert wire.closed
    assert wire.written.startswith(b"HTTP/1.1 400 ")
    assert wire.written.count(b"HTTP/1.1 ") == 1


async def test_offers_of_a_last_request_leave_it_the_last() -> None:
    wire = await wire_after(request("GET", "Connection: close, Upgrade", "Upgrade: h2c") + LAST)
    (only,) = answers(wire)
    assert only["path"] == "/first"
    assert wire.closed


@pytest.mark.parametrize(
    "content",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT kaiten:80 HTTP/1.1\r\nHost: kaiten\r\n\r\n" + LAST,
        b"CONNECT /first HTTP/1.1\r\nHost: kaiten\r\n\r\n" + LAST,
    ],
)
async def test_what_is_no_http_from_then_on_is_refused_once(content: bytes) -> None:
    for packets in ([content], [content[at : at + 1] for at in range(len(content))]):
        wire = await wire_after(*packets)
        assert wire.closed
        assert wire.written.startswith(b"HTTP/1.1 400 ")
        assert wire.written.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("content", [b"", LAST, LAST * 3, request("POST", LENGTH) + BODY])
async def test_an_idle_connection_outlasts_a_balancer(content: bytes) -> None:
    server = Server()
    protocol, wire = server.connect()
    if content:
        protocol.data_received(content)
        await server.answer()
    server.clock.pass_by(74)
    assert not wire.closed
    server.clock.pass_by(2)
    assert wire.closed


async def test_each_request_begins_the_idle_time_anew() -> None:
    server = Server(keep_alive_s=20)
    protocol, wire = server.connect()
    for _ in range(10):
        protocol.data_received(LAST)
        await server.answer()
        server.clock.pass_by(19)
    assert not wire.closed
    server.clock.pass_by(2)
    assert wire.closed


@pytest.mark.parametrize("offer", [[], OFFERS["h2c"]], ids=["plain", "h2c"])
async def test_a_head_that_trickles_in_has_its_time_from_the_first_byte(offer: list[str]) -> None:
    server = Server(header_timeout_s=10)
    protocol, wire = server.connect()
    for number, byte in enumerate(request("GET", *offer)[:20]):
        assert wire.closed == (number >= 10)
        if not wire.closed:
            protocol.data_received(bytes([byte]))
            server.clock.pass_by(1)
    assert wire.written == b""


async def test_a_request_that_is_worked_on_has_no_timer() -> None:
    server = Server()
    protocol, wire = server.connect()
    protocol.data_received(request("POST", LENGTH) + BODY[:5])
    server.clock.pass_by(1000)
    assert not wire.closed
    protocol.data_received(BODY[5:])
    await server.answer()
    (echo,) = answers(wire)
    assert echo["body"] == BODY.decode()


async def test_a_second_head_has_a_time_of_its_own() -> None:
    server = Server(header_timeout_s=10)
    protocol, wire = server.connect()
    for _ in range(3):
        protocol.data_received(LAST[:9])
        server.clock.pass_by(9)
        protocol.data_received(LAST[9:])
        await server.answer()
    assert not wire.closed
    assert len([*answers(wire)]) == 3


async def test_the_longest_idle_are_closed_over_the_limit() -> None:
    server = Server(limit=2)
    _, silent = server.connect()
    busy, busy_wire = server.connect()
    busy.data_received(request("POST", LENGTH))
    again, again_wire = server.connect()
    _, third = server.connect()
    assert (silent.closed, busy_wire.closed, again_wire.closed, third.closed) == (
        True,
        *[False] * 3,
    )
    again.data_received(LAST)
    await asyncio.sleep(0)
    busy.data_received(BODY)
    await server.answer()
    assert (busy_wire.closed, again_wire.closed, third.closed) == (False, False, True)


async def test_a_connection_that_ends_is_forgotten() -> None:
    server = Server(limit=1)
    for _ in range(3):
        protocol, _ = server.connect()
        protocol.connection_lost(None)
        server.clock.pass_by(1000)
    _, last = server.connect()
    assert not last.closed
    assert sum(not timer.cancelled for timer in server.clock.timers) == 1


@pytest.fixture
def protocols() -> Iterator[dict[str, str]]:
    before = dict(HTTP_PROTOCOLS)
    yield HTTP_PROTOCOLS
    HTTP_PROTOCOLS.clear()
    HTTP_PROTOCOLS.update(before)


def test_uvicorn_is_the_version_that_this_was_tested_with() -> None:
    assert uvicorn.__version__.startswith(f"{TESTED_UVICORN}."), (
        "uvicorn has changed: read its httptools_impl.py again, and see gateway/http/protocol.py"
    )


def test_servers_speak_by_this_protocol(protocols: dict[str, str]) -> None:
    install(GatewaySettings())
    config = uvicorn.Config(app, log_config=None, lifespan="off")
    config.load()
    create = cast("Callable[..., asyncio.Protocol]", config.http_protocol_class)
    loop = asyncio.new_event_loop()
    channel = create(config=config, server_state=ServerState(), app_state={}, _loop=loop)
    loop.close()
    assert isinstance(channel, Channel)
    protocol = channel.protocol
    assert isinstance(protocol, HttpProtocol)
    assert protocol.timeout_keep_alive == 75


def test_another_uvicorn_keeps_its_own_protocol(
    protocols: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dict(protocols)
    monkeypatch.setattr(uvicorn, "__version__", "0.55.0")
    with capture_logs() as logs:
        install(GatewaySettings())
    assert protocols == before
    assert [line["event"] for line in logs] == ["http_protocol_not_installed"]


async def answer_complete_request(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer once the caller has sent all, or has left."""
    while (await receive()).get("more_body"):
        pass
    await JSONResponse({})(scope, receive, send)


async def test_what_is_no_http_is_refused_in_the_envelope() -> None:
    wire = await wire_after(b"no HTTP\r\n\r\n")
    head, _, body = wire.written.partition(b"\r\n\r\n")
    headers = parse_headers(BytesIO(head.partition(b"\r\n")[2] + b"\r\n\r\n"))
    error = json.loads(body)["error"]
    assert (error["code"], error["request_id"]) == ("malformed_request", headers["X-Request-ID"])
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Connection"] == "close"


@pytest.mark.parametrize("before", [b"", LAST, LAST * 2])
@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize(
    "target", ["http:///livez", "http://", "http://kaiten", "https://[", "http://:99999/livez"]
)
async def test_a_target_that_is_no_url_is_refused_once(
    target: str, before: bytes, *, answered: bool
) -> None:
    server = Server()
    protocol, wire = server.connect()
    refused = request("POST", LENGTH, path=target) + BODY + LAST
    if answered:
        protocol.data_received(before)
        await server.answer()
        protocol.data_received(refused)
    else:
        protocol.data_received(before + refused)
    await server.answer()
    statuses = [answer[:3] for answer in wire.written.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200"] * before.count(LAST) + [b"400"]
    assert wire.closed


@pytest.mark.parametrize("behind", [b"", LAST])
async def test_a_body_that_is_no_http_is_refused_in_place_of_its_answer(behind: bytes) -> None:
    server = Server(app=answer_complete_request)
    protocol, wire = server.connect()
    protocol.data_received(behind + request("POST", CHUNKED) + b"1\r\na\r\nno chunk")
    await server.answer()
    answers = [answer[:3] for answer in wire.written.split(b"HTTP/1.1 ")[1:]]
    assert answers == ([b"200"] if behind else []) + [b"400"]
    assert wire.closed


async def test_a_request_is_answered_before_what_is_refused_behind_it() -> None:
    wire = await wire_after(LAST * 2 + b"no HTTP\r\n\r\n" + LAST)
    assert [answer[:3] for answer in wire.written.split(b"HTTP/1.1 ")[1:]] == [
        b"200",
        b"200",
        b"400",
    ]
    assert wire.closed


async def test_an_answer_that_is_broken_off_ends_its_connection_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise DeadlineExceeded(1)

    server = Server(app=late)
    protocol, wire = server.connect()
    protocol.data_received(LAST)
    await server.answer()
    assert wire.closed
    assert caplog.records == []


async def test_a_timer_of_the_idle_time_is_alone() -> None:
    server = Server()
    protocol, _ = server.connect()
    for _ in range(3):
        # As where an answer needs no task: it is complete once the request is parsed.
        protocol.data_received(LAST)
        await server.answer()
        protocol._close_unless_continued()
        assert sum(not timer.cancelled for timer in server.clock.timers) == 1
