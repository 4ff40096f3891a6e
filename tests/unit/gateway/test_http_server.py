"""Connections are accepted several at a time, and within what a process may have open."""

import os
import resource
import socket

import pytest
import uvicorn

from gateway.http_server import HttpServer, max_connections


async def test_each_socket_is_listened_on_by_several_handles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[socket.socket] = []

    async def startup(_: uvicorn.Server, sockets: list[socket.socket]) -> None:
        seen.extend(sockets)

    monkeypatch.setattr(uvicorn.Server, "startup", startup)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        await HttpServer(uvicorn.Config("app")).startup([listening])
        assert len(seen) == 32
        assert {each.getsockname() for each in seen} == {listening.getsockname()}
        for each in seen[1:]:
            each.close()


async def test_socket_of_other_workers_never_turns_blocking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modes: list[bool] = []
    dup = socket.socket.dup

    def noting(self: socket.socket) -> socket.socket:
        copy = dup(self)
        modes.append(os.get_blocking(self.fileno()))
        return copy

    async def startup(_: uvicorn.Server, sockets: list[socket.socket]) -> None:
        for each in sockets[1:]:
            each.close()

    monkeypatch.setattr(uvicorn.Server, "startup", startup)
    monkeypatch.setattr(socket.socket, "dup", noting)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        # As libuv has it in the workers that run.
        listening.settimeout(0)
        with socket.socket(fileno=os.dup(listening.fileno())) as inherited:
            await HttpServer(uvicorn.Config("app")).startup([inherited])
    assert modes
    assert not any(modes)


@pytest.mark.parametrize(
    ("descriptors", "connections"), [(64, 8), (128, 64), (1024, 960), (10**6, 8192), (-1, 8192)]
)
def test_some_descriptors_are_left_to_the_worker_itself(
    monkeypatch: pytest.MonkeyPatch, descriptors: int, connections: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (descriptors, descriptors))
    assert max_connections() == connections
