"""Connections are accepted several at once, and shared between the workers of a server."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from gateway.http.acceptor import Acceptor


@dataclass
class Connections:
    """Those of one worker; ``leaves`` says that another has room."""

    leaves: bool = False
    ready: bool = True
    count: int = 0

    def another_has_room(self) -> bool:
        return self.leaves

    def opened(self) -> None:
        self.count += 1

    def closed(self) -> None:
        self.count -= 1


class Greeting(asyncio.Protocol):
    """Greets each peer."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"hello")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@asynccontextmanager
async def accepting(listener: socket.socket, connections: Connections) -> AsyncIterator[Acceptor]:
    acceptor = Acceptor(listener, Greeting, connections, None, 10)
    yield acceptor
    acceptor.close()
    await acceptor.wait_closed()


async def read_greeting(address: tuple[str, int]) -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    async with asyncio.timeout(10):
        greeting = await reader.readexactly(5)
    writer.close()
    return greeting


async def test_all_waiting_connections_are_accepted_in_one_iteration(
    listener: socket.socket,
) -> None:
    address, connections = listener.getsockname(), Connections()
    peers = [socket.create_connection(address) for _ in range(32)]
    async with accepting(listener, connections):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert connections.count == 32
    for peer in peers:
        peer.close()


async def test_connection_that_no_other_worker_takes_is_accepted(listener: socket.socket) -> None:
    address, connections = listener.getsockname(), Connections(leaves=True)
    async with accepting(listener, connections):
        assert [await read_greeting(address) for _ in range(3)] == [b"hello"] * 3
    assert connections.count == 3


async def test_worker_that_is_not_ready_takes_what_nobody_else_does(
    listener: socket.socket,
) -> None:
    address, connections = listener.getsockname(), Connections(leaves=True, ready=False)
    async with accepting(listener, connections):
        assert await read_greeting(address) == b"hello"
    assert connections.count == 1


async def test_connections_go_to_the_worker_that_has_room(listener: socket.socket) -> None:
    address, inherited = listener.getsockname(), listener.dup()
    crowded, free = Connections(leaves=True), Connections()
    async with accepting(listener, crowded), accepting(inherited, free):
        for _ in range(20):
            assert await read_greeting(address) == b"hello"
    assert crowded.count + free.count == 20
    # The loop itself may take longer than the moment for which connections are left to another.
    assert free.count > crowded.count


async def test_socket_of_other_workers_never_turns_blocking(listener: socket.socket) -> None:
    inherited = listener.dup()
    listener.settimeout(0)
    async with accepting(inherited, Connections()):
        assert not inherited.getblocking()
        with pytest.raises(BlockingIOError):
            listener.accept()


class ExhaustedListener(socket.socket):
    """Has no file descriptor for the first connection that it is asked for."""

    exhausted = True

    def accept(self) -> tuple[socket.socket, object]:
        if self.exhausted:
            self.exhausted = False
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def test_worker_without_descriptors_accepts_again_later(listener: socket.socket) -> None:
    exhausted = ExhaustedListener(fileno=listener.detach())
    address, connections = exhausted.getsockname(), Connections()
    async with accepting(exhausted, connections):
        assert await read_greeting(address) == b"hello"
    assert connections.count == 1


async def test_closed_acceptor_accepts_nothing(listener: socket.socket) -> None:
    address, connections = listener.getsockname(), Connections(leaves=True)
    inherited = listener.dup()
    async with accepting(inherited, connections):
        pass
    with socket.create_connection(address):
        await asyncio.sleep(0)
        assert connections.count == 0
