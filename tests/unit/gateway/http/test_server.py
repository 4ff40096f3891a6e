"""uvicorn's server with the gateway's acceptor, and the connections that a process may have."""

import asyncio
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn
from uvicorn.lifespan.off import LifespanOff

from gateway.http.channel import BUFFER_BYTES
from gateway.http.server import HttpServer, max_connections
from kaiten.settings.roster import Roster
from kaiten.settings.snapshot import memory_file
from tests.certificates import Authority
from tests.unit.gateway.http.test_protocol import app


@asynccontextmanager
async def running_server(
    listener: socket.socket, handshake_timeout_s: float = 10, **options: str
) -> AsyncIterator[HttpServer]:
    config = uvicorn.Config(app, log_config=None, lifespan="off", **options)  # type: ignore[arg-type]
    config.load()
    workers = Roster(memory_file(), 1, 0)
    server = HttpServer(config, handshake_timeout_s, lambda: workers)
    server.lifespan = LifespanOff(config)
    await server.startup([listener])
    yield server
    for handle in server.servers:
        handle.close()


@pytest.fixture(autouse=True)
def few_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))


@pytest.fixture
def listener() -> socket.socket:
    """Return a socket, as libuv has it in the workers that run; the server closes it."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0)
    return listener


async def test_kernel_takes_little_for_a_caller_who_does_not_read(listener: socket.socket) -> None:
    # An accepted connection inherits it.
    async with running_server(listener):
        lowat_bytes = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
        assert lowat_bytes == BUFFER_BYTES


async def test_a_handshake_that_does_not_come_ends_its_connection(
    listener: socket.socket, tmp_path: Path
) -> None:
    address = listener.getsockname()
    certificate, key = Authority(tmp_path, "servers").issue("server", "kaiten")
    tls = {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}
    async with running_server(listener, handshake_timeout_s=0.01, **tls):
        reader, writer = await asyncio.open_connection(*address)
        # uvloop and asyncio would wait for a minute.
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize(
    ("descriptors", "connections"), [(64, 8), (128, 64), (1024, 960), (10**6, 8192), (-1, 8192)]
)
def test_some_descriptors_are_left_to_the_worker_itself(
    monkeypatch: pytest.MonkeyPatch, descriptors: int, connections: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (descriptors, descriptors))
    assert max_connections() == connections
