"""uvicorn's server with its own acceptor, a connection limit and a limit on TLS handshakes.

With TLS, a connection counts as one from the end of its handshake. Before that it holds a file
descriptor and uvloop's buffers, for ``gateway.header_timeout_s`` at most, and nothing limits how
many do so at once.
"""

import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from gateway.http.acceptor import Acceptor
from gateway.http.channel import BUFFER_BYTES
from gateway.interfaces import WorkerConnections
from kaiten.files import descriptor_limit, raise_descriptor_limit
from kaiten.settings.models import GatewaySettings

# Descriptors for other than connections: files of models, metrics, logs and databases.
_OTHER_DESCRIPTORS = 64
# Connections over a worker's limit that are kept for probes and refusals.
MAX_CROWD = 16
_MIN_CONNECTIONS, _MAX_CONNECTIONS = 8, 8192


class HttpServer(uvicorn.Server):
    """A server that shares connections with other workers, and bounds TLS handshakes.

    ``workers`` is called once the server starts.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        handshake_timeout_s: float,
        workers: Callable[[], WorkerConnections],
    ) -> None:
        super().__init__(config)
        self._handshake_timeout_s = handshake_timeout_s
        self._workers = workers

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen: as uvicorn does, which lets a handshake take a minute."""
        if not sockets:
            raise ValueError("no socket to listen on")
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        connect = partial(
            cast("Any", self.config.http_protocol_class),
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        workers = self._workers()
        for listener in sockets:
            if listener.family != socket.AF_UNIX and hasattr(socket, "TCP_NOTSENT_LOWAT"):
                # Its connections inherit it: the kernel would take megabytes for a caller that
                # reads nothing, and wake a writer only once a third of them is sent.
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, BUFFER_BYTES)
            listener.listen(self.config.backlog)
        self.servers = cast(
            "Any",
            [
                Acceptor(listener, connect, workers, self.config.ssl, self._handshake_timeout_s)
                for listener in sockets
            ],
        )
        self.started = True


def install(limits: GatewaySettings, workers: Callable[[], WorkerConnections]) -> None:
    """Make BentoML use HttpServer in this process; ``workers`` is called once it starts.

    Also raises the soft limit of open files to the hard one, because each connection is one.
    """
    module: Any = uvicorn
    module.Server = partial(
        HttpServer, handshake_timeout_s=limits.header_timeout_s, workers=workers
    )
    raise_descriptor_limit()


def max_connections() -> int:
    """Return how many connections a worker may have and still open its own files."""
    return max(_MIN_CONNECTIONS, min(_MAX_CONNECTIONS, descriptor_limit() - _OTHER_DESCRIPTORS))
