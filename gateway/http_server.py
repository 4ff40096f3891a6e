"""uvicorn's server with faster accepts, and a connection limit by file descriptors."""

import socket
from typing import Any

import uvicorn

from kaiten.files import descriptor_limit, raise_descriptor_limit

# libuv accepts one connection for each listening handle in an iteration of the event loop. Under
# load an iteration takes milliseconds, and with one handle new connections, probes included, would
# wait for seconds or be dropped by the kernel. An idle handle costs one system call.
_LISTENING_HANDLES = 32
# With a low limit of open files: one handle for this many file descriptors.
_DESCRIPTORS_A_HANDLE = 32
# Descriptors for other than connections: files of models, metrics, logs and databases.
_OTHER_DESCRIPTORS = 64
# Connections over a worker's limit that are kept for probes and refusals.
MAX_CROWD = 16
_MIN_CONNECTIONS, _MAX_CONNECTIONS = 8, 8192


class HttpServer(uvicorn.Server):
    """A server that listens on each socket with several handles."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        extra = min(_LISTENING_HANDLES, descriptor_limit() // _DESCRIPTORS_A_HANDLE) - 1
        for listener in sockets or ():
            # All workers share one open file description. dup() of a socket without a timeout
            # makes it blocking, and the event loop of another worker would hang in accept().
            listener.settimeout(0)
        handles = [
            handle
            for listener in sockets or ()
            for handle in (listener, *(listener.dup() for _ in range(extra)))
        ]
        await super().startup(handles or None)


def install() -> None:
    """Make BentoML use HttpServer in this process.

    Also raises the soft limit of open files to the hard one, because each connection is one.
    """
    module: Any = uvicorn
    module.Server = HttpServer
    raise_descriptor_limit()


def max_connections() -> int:
    """Return how many connections a worker may have and still open its own files."""
    return max(_MIN_CONNECTIONS, min(_MAX_CONNECTIONS, descriptor_limit() - _OTHER_DESCRIPTORS))
