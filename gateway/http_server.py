"""uvicorn's server, which accepts connections as they come, and no more than it can hold."""

import socket
from typing import Any

import uvicorn

from kaiten.files import descriptor_limit, raise_descriptor_limit

# libuv accepts one connection of each listening handle in an iteration of the event loop. Under
# load an iteration takes milliseconds: new connections, probes among them, would wait for seconds,
# or the kernel would drop them. A handle costs a system call where no connection waits.
_LISTENING_HANDLES = 32
# A handle for so many file descriptors, where few may be open.
_DESCRIPTORS_A_HANDLE = 32
# What a worker opens besides connections: files of models, metrics, logs and databases.
_OTHER_DESCRIPTORS = 64
# Connections beyond those that a worker may have, each for a probe or a refusal.
MAX_CROWD = 16
_MIN_CONNECTIONS, _MAX_CONNECTIONS = 8, 8192


class HttpServer(uvicorn.Server):
    """Listens on each socket by several handles."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        more = min(_LISTENING_HANDLES, descriptor_limit() // _DESCRIPTORS_A_HANDLE) - 1
        for listener in sockets or ():
            # All workers share one open socket. Python's dup would make it blocking, as it has no
            # timeout here, and the event loop of another worker would hang in accept().
            listener.settimeout(0)
        handles = [
            handle
            for listener in sockets or ()
            for handle in (listener, *(listener.dup() for _ in range(more)))
        ]
        await super().startup(handles or None)


def install() -> None:
    """Let the servers that BentoML starts in this process be of this class.

    The process may then open as many files as its account may: a connection is one.
    """
    module: Any = uvicorn
    module.Server = HttpServer
    raise_descriptor_limit()


def max_connections() -> int:
    """Return how many connections a worker may have, so that its own files can still be opened."""
    return max(_MIN_CONNECTIONS, min(_MAX_CONNECTIONS, descriptor_limit() - _OTHER_DESCRIPTORS))
