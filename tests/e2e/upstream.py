"""Stands behind nginx in the server's place, where a test asks what a server would get."""

import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO

_LIMIT_S = 30
_OK = b"HTTP/1.1 200 OK\r\nServer: inner\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Upstream:
    """Keeps each request as it came; ``/hold`` is answered once ``let_go``, ``/cut`` never."""

    listener: socket.socket
    let_go: threading.Event = field(default_factory=threading.Event)
    _requests: queue.Queue[bytes] = field(default_factory=queue.Queue)

    @property
    def port(self) -> int:
        port: int = self.listener.getsockname()[1]
        return port

    def next(self) -> bytes:
        """Return the next request, once it is there."""
        return self._requests.get(timeout=_LIMIT_S)

    def rest(self) -> list[bytes]:
        """Return the remaining requests."""
        return [self._requests.get() for _ in range(self._requests.qsize())]

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while request := _read(stream):
                self._requests.put(request)
                if b" /cut " in request:
                    return
                if b" /hold " in request:
                    self.let_go.wait(_LIMIT_S)
                connection.sendall(_OK)


def _read(stream: BinaryIO) -> bytes:
    """Return a whole request; nginx gives a body's length. Empty at the end of the connection."""
    head, length = b"", 0
    while (line := stream.readline()) not in (b"", b"\r\n"):
        head += line
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return head and head + b"\r\n" + stream.read(length)


@contextmanager
def listening() -> Iterator[Upstream]:
    """Run one on a free port."""
    upstream = Upstream(socket.create_server(("127.0.0.1", 0)))
    accepting = threading.Thread(target=upstream.accept, daemon=True)
    accepting.start()
    try:
        yield upstream
    finally:
        upstream.let_go.set()
        # Closing alone does not wake a thread that waits in accept.
        upstream.listener.shutdown(socket.SHUT_RDWR)
        accepting.join()
        upstream.listener.close()
