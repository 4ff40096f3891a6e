"""What a connection holds in memory, and for how long, whatever its peer does."""

import asyncio
import logging
import socket
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import cast

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from uvicorn.lifespan.off import LifespanOff

from gateway.admission.protocol import AdmissionProtocol
from gateway.http.backlog import Turns
from gateway.http.channel import BODY_BUFFER_BYTES, BUFFER_BYTES, Channel
from gateway.http.protocol import IdleConnections
from gateway.http.server import HttpServer
from kaiten.settings.models import GatewaySettings
from kaiten.settings.roster import Roster
from kaiten.settings.snapshot import memory_file
from tests.unit.gateway.admission.test_protocol import Stub
from tests.unit.gateway.http.test_protocol import Clock, edge

STALL_S = 10


class Wire(asyncio.Transport):
    """A connection whose peer takes what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.left_bytes = 0
        self.closed = self.aborted = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high_bytes = high

    def get_write_buffer_size(self) -> int:
        return self.left_bytes

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.left_bytes += len(data)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed


class Protocol(asyncio.Protocol):
    """Keeps what it receives."""

    def __init__(self) -> None:
        self.received: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self.received.append(data)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: clock)
    return clock


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def channel(wire: Wire, clock: Clock) -> Channel:
    channel = Channel(Protocol(), STALL_S)
    channel.connection_made(wire)
    return channel


def test_peer_that_takes_nothing_is_disconnected(
    channel: Channel, wire: Wire, clock: Clock
) -> None:
    channel.write(b"x" * 20_000)
    channel.pause_writing()
    clock.pass_by(STALL_S - 1)
    assert not wire.aborted
    clock.pass_by(1)
    assert wire.aborted


def test_peer_that_takes_a_little_is_not(channel: Channel, wire: Wire, clock: Clock) -> None:
    channel.write(b"x" * 20_000)
    channel.pause_writing()
    for _ in range(5):
        # Bytes written meanwhile do not count against those taken.
        channel.write(b"x" * 100)
        wire.left_bytes -= 1
        clock.pass_by(STALL_S)
        assert not wire.aborted
    clock.pass_by(STALL_S)
    assert wire.aborted


def test_peer_that_reads_in_time_may_be_slow_to_ask_again(
    channel: Channel, wire: Wire, clock: Clock
) -> None:
    channel.write(b"x" * 20_000)
    channel.pause_writing()
    channel.resume_writing()
    clock.pass_by(STALL_S * 10)
    assert not wire.aborted


@pytest.mark.parametrize("end", ["close", "eof_received"])
def test_connection_that_ends_does_not_wait_for_its_peer(
    channel: Channel, wire: Wire, clock: Clock, end: str
) -> None:
    channel.write(b"x" * 100)
    getattr(channel, end)()
    assert not wire.aborted
    clock.pass_by(STALL_S)
    assert wire.aborted


def test_connection_that_has_ended_leaves_no_timer(channel: Channel, clock: Clock) -> None:
    channel.close()
    channel.connection_lost(None)
    assert [timer for timer in clock.timers if not timer.cancelled] == []


def test_each_read_is_small_and_its_bytes_are_the_protocols(channel: Channel, wire: Wire) -> None:
    assert wire.high_bytes == BUFFER_BYTES
    for data in (b"first", b"second"):
        buffer = channel.get_buffer(256_000)
        assert len(buffer) == BUFFER_BYTES
        buffer[: len(data)] = data
        channel.buffer_updated(len(data))
    assert cast("Protocol", channel.protocol).received == [b"first", b"second"]


@pytest.mark.parametrize(
    ("left_bytes", "read_bytes"),
    [(0, BUFFER_BYTES), (BUFFER_BYTES, BUFFER_BYTES), (BUFFER_BYTES + 1, BODY_BUFFER_BYTES)],
)
def test_reads_are_large_within_a_body_of_known_length(left_bytes: int, read_bytes: int) -> None:
    reader = SimpleNamespace(body_bytes_left=left_bytes)
    channel = Channel(asyncio.Protocol(), STALL_S, reader)
    assert len(channel.get_buffer(256_000)) == read_bytes


@asynccontextmanager
async def serving(stall_s: float) -> AsyncIterator[tuple[HttpServer, tuple[str, int]]]:
    """Serve answers of 10 KB on loopback, early ones by /early."""
    app, workers = edge(PlainTextResponse("x" * 10_000)), Roster(memory_file(), 1, 0)
    protocol = partial(
        AdmissionProtocol,
        limits=GatewaySettings(),
        idle=IdleConnections(100),
        admission=Stub(),
        max_connections=100,
        crowd=IdleConnections(16),
        turns=Turns(0.004),
        workers=workers,
    )
    config = uvicorn.Config(app, log_config=None, lifespan="off")
    config.load()
    config.http_protocol_class = lambda **options: Channel(protocol(**options), stall_s)  # type: ignore[assignment]
    server = HttpServer(config, 10, lambda: workers)
    server.lifespan = LifespanOff(config)
    listener = socket.create_server(("127.0.0.1", 0))
    await server.startup([listener])
    yield server, listener.getsockname()
    for handle in server.servers:
        handle.close()


async def send_until_stalled(peer: socket.socket, data: bytes) -> int:
    """Send without reading until nothing more is taken for a while; return how much was."""
    sent_bytes, refusals = 0, 0
    while refusals < 20:
        try:
            sent_bytes += peer.send(data)
            refusals = 0
        except BlockingIOError:
            refusals += 1
        except ConnectionError:
            break
        await asyncio.sleep(0.001)
    return sent_bytes


@pytest.mark.parametrize("path", [b"/early", b"/late"])
async def test_memory_of_a_caller_who_pipelines_and_does_not_read_is_bounded(path: bytes) -> None:
    async with serving(stall_s=60) as (server, address):
        with socket.create_connection(address) as peer:
            peer.settimeout(0)
            await send_until_stalled(peer, b"GET %s HTTP/1.1\r\n\r\n" % path * 10_000)
            (protocol,) = server.server_state.connections
            assert isinstance(protocol, AdmissionProtocol)
            held_bytes = protocol.transport._transport.get_write_buffer_size()  # type: ignore[attr-defined]
            # At most one answer beyond the mark, and one request beyond the one that waits.
            assert held_bytes <= BUFFER_BYTES + 11_000
            assert len(protocol._unparsed) <= BUFFER_BYTES
            assert len(protocol.pipeline) <= 1
            protocol.transport.abort()


@pytest.mark.parametrize("path", [b"/early", b"/late"])
async def test_callers_who_do_not_read_are_disconnected_and_nothing_is_logged(
    path: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(stall_s=0.05) as (server, address):
        peers = [socket.create_connection(address) for _ in range(4)]
        for peer in peers:
            peer.settimeout(0)
            await send_until_stalled(peer, b"GET %s HTTP/1.1\r\n\r\n" % path * 10_000)
        async with asyncio.timeout(30):
            while server.server_state.connections or server.server_state.tasks:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        for peer in peers:
            peer.close()
    assert [line for line in caplog.records if line.levelno >= logging.WARNING] == []


def test_channel_and_protocol_do_not_keep_each_other(wire: Wire, clock: Clock) -> None:
    class Keeper(Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

    channel = Channel(Keeper(), STALL_S)
    channel.connection_made(wire)
    ended = weakref.ref(channel.protocol)
    channel.connection_lost(None)
    assert ended() is None
