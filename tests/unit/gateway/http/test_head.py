import asyncio
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from uvicorn.server import ServerState

from gateway.http.head import BoundedProtocol
from gateway.http.protocol import IdleConnections
from kaiten.settings.models import GatewaySettings
from tests.unit.gateway.http.test_protocol import edge

LIMITS = GatewaySettings(max_header_bytes=1024, max_headers=10)
GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
PART = 64 * 1024
ENDLESS = {
    "headers": (GET, b"a:b\r\n"),
    "one header": (GET + b"a: ", b"b"),
    "one name": (GET, b"a"),
    "target": (b"GET /", b"a"),
    "trailers": (CHUNKED + b"0\r\n", b"a:b\r\n"),
    "one trailer": (CHUNKED + b"0\r\na: ", b"b"),
}
GOOD = {
    "no body": GET + b"\r\n",
    "a body": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000,
    "chunks": CHUNKED + b"1\r\na\r\n" * 10_000 + b"0\r\nend: true\r\n\r\n",
    "headers up to the spare": GET + b"a: b\r\n" * 500 + b"\r\n",
    "several requests": (GET + b"a: %s\r\n\r\n" % (b"b" * 10_000)) * 20,
}


class Transport(asyncio.Transport):
    """Keeps written bytes; ``reading`` is set while more may be received, and at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False
        self.reading = asyncio.Event()
        self.reading.set()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True
        self.reading.set()

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading.clear()

    def resume_reading(self) -> None:
        self.reading.set()


@pytest.fixture
async def protocol() -> BoundedProtocol:
    config = uvicorn.Config(edge(PlainTextResponse("answer")), log_config=None)
    return BoundedProtocol(config, ServerState(), {}, limits=LIMITS, idle=IdleConnections(1))


async def _await_answers(protocol: BoundedProtocol) -> None:
    while protocol.tasks:
        await asyncio.wait(protocol.tasks)


def _parts(request: bytes) -> Iterator[bytes]:
    for start in range(0, len(request), PART):
        yield request[start : start + PART]


@pytest.mark.parametrize(("start", "unit"), ENDLESS.values(), ids=ENDLESS)
async def test_head_without_end_is_refused_while_it_comes(
    protocol: BoundedProtocol, start: bytes, unit: bytes
) -> None:
    transport = Transport()
    protocol.connection_made(transport)
    received = 0
    for part in _parts(start + unit * (2**21 // len(unit))):
        protocol.data_received(part)
        received += len(part)
        if not transport.reading.is_set():
            break
    await _await_answers(protocol)
    assert transport.closed
    assert received <= 5 * PART
    assert b"HTTP/1.1 431 " in transport.written
    assert b'"code": "headers_too_large"' in transport.written


@pytest.mark.parametrize("request_", GOOD.values(), ids=GOOD)
async def test_request_within_its_bounds_is_answered(
    protocol: BoundedProtocol, request_: bytes
) -> None:
    transport = Transport()
    protocol.connection_made(transport)
    for part in _parts(request_):
        protocol.data_received(part)
        await transport.reading.wait()
    await _await_answers(protocol)
    assert transport.written.count(b"HTTP/1.1 200 OK") == request_.count(b" HTTP/1.1")
    assert not transport.closed
    protocol.connection_lost(None)


async def test_malformed_request_is_still_a_400(protocol: BoundedProtocol) -> None:
    transport = Transport()
    protocol.connection_made(transport)
    protocol.data_received(b"\x00\x00\r\n\r\n")
    await _await_answers(protocol)
    assert transport.written.startswith(b"HTTP/1.1 400 ")


async def test_trailers_are_no_headers(protocol: BoundedProtocol) -> None:
    transport = Transport()
    protocol.connection_made(transport)
    trailers = b"Authorization: Bearer a\r\nX-API-Key: b\r\nExpect: 100-continue\r\n\r\n"
    protocol.data_received(CHUNKED + b"1\r\na\r\n0\r\n" + trailers)
    assert [name for name, _ in protocol.cycle.scope["headers"]] == [b"host", b"transfer-encoding"]
    await _await_answers(protocol)
    # Those of the request behind it are.
    protocol.data_received(GET + b"Authorization: Bearer c\r\n\r\n")
    assert (b"authorization", b"Bearer c") in protocol.cycle.scope["headers"]
    await _await_answers(protocol)
