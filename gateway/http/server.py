"""uvicorn's server with faster accepts, a connection limit and a limit on TLS handshakes.

With TLS, a connection counts as one from the end of its handshake. Before that it holds a file
descriptor and uvloop's buffers, for ``gateway.header_timeout_s`` at most, and nothing limits how
many do so at once.
"""

import asyncio
import socket
import sys
from functools import partial
from typing import Any, cast

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from gateway.http.channel import BUFFER_BYTES
from kaiten.files import descriptor_limit, raise_descriptor_limit
from kaiten.settings.models import GatewaySettings

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
    """A server that listens on each socket with several handles, and bounds TLS handshakes."""

    def __init__(self, config: uvicorn.Config, handshake_timeout_s: float) -> None:
        super().__init__(config)
        self._handshake_timeout_s = handshake_timeout_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen: as uvicorn does, which lets a handshake take a minute."""
        if not sockets:
            raise ValueError("no socket to listen on")
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        loop = asyncio.get_running_loop()
        connect = partial(
            cast("Any", self.config.http_protocol_class),
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        self.servers = [
            await loop.create_server(
                connect,
                sock=handle,
                ssl=self.config.ssl,
                ssl_handshake_timeout=self._handshake_timeout_s if self.config.ssl else None,
                backlog=self.config.backlog,
            )
            for handle in self._handles(sockets)
        ]
        self.started = True

    def _handles(self, sockets: list[socket.socket]) -> list[socket.socket]:
        more = min(_LISTENING_HANDLES, descriptor_limit() // _DESCRIPTORS_A_HANDLE) - 1
        for listener in sockets:
            # All workers share one open file description. dup() of a socket without a timeout
            # makes it blocking, and the event loop of another worker would hang in accept().
            listener.settimeout(0)
            if listener.family != socket.AF_UNIX and hasattr(socket, "TCP_NOTSENT_LOWAT"):
                # Its connections inherit it: the kernel would take megabytes for a caller that
                # reads nothing, and wake a writer only once a third of them is sent.
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, BUFFER_BYTES)
        return [
            handle
            for listener in sockets
            for handle in (listener, *(listener.dup() for _ in range(more)))
        ]


def install(limits: GatewaySettings) -> None:
    """Make BentoML use HttpServer in this process.

    Also raises the soft limit of open files to the hard one, because each connection is one.
    """
    module: Any = uvicorn
    module.Server = partial(HttpServer, handshake_timeout_s=limits.header_timeout_s)
    raise_descriptor_limit()


def max_connections() -> int:
    """Return how many connections a worker may have and still open its own files."""
    return max(_MIN_CONNECTIONS, min(_MAX_CONNECTIONS, descriptor_limit() - _OTHER_DESCRIPTORS))
