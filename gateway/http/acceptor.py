"""Accepts connections: several at once, and about as many in each worker.

All workers listen on one socket, and a new connection wakes all of them. The worker that is on a
CPU first, mostly the same one, would accept all connections of a small pool, and the others would
have nothing to do. So a worker with more connections than another, or that is not ready, leaves new
ones to the others for a moment.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from typing import Any

import structlog

from gateway.interfaces import WorkerConnections

logger = structlog.get_logger(__name__)
# In one iteration of the event loop. Under load it takes milliseconds, and if each accepted one
# connection, new ones, probes included, would wait for seconds or be dropped by the kernel.
_MAX_ACCEPTED = 32
# How long new connections are left to other workers. A worker that is not ready would refuse their
# requests, and waits longer. If no other has taken them, this one accepts one of them, and one more
# for so many connections that it has.
_YIELD_S = 0.001
_UNREADY_YIELD_S = 0.1
_CONNECTIONS_FOR_ONE_MORE = 8
# How long to wait if the system has no file descriptor or no memory for a connection.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_EXHAUSTED_PAUSE_S = 0.1


class Acceptor:
    """Accepts the connections of a listening socket, which it makes non-blocking, until closed.

    ``connect`` returns the protocol of a connection. With ``tls``, a handshake may take
    ``handshake_timeout_s``.
    """

    def __init__(
        self,
        listener: socket.socket,
        connect: Callable[[], asyncio.BaseProtocol],
        workers: WorkerConnections,
        tls: ssl.SSLContext | None,
        handshake_timeout_s: float,
    ) -> None:
        # All workers share one open file description.
        listener.settimeout(0)
        self._listener, self._connect, self._workers = listener, connect, workers
        self._tls: dict[str, Any] = (
            {"ssl": tls, "ssl_handshake_timeout": handshake_timeout_s} if tls else {}
        )
        self._loop = asyncio.get_running_loop()
        # The event loop itself holds tasks weakly.
        self._connecting: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(listener, self._on_readable)

    def close(self) -> None:
        """Accept no more, and close the socket; connections stay."""
        self._stop_waiting()
        self._loop.remove_reader(self._listener)
        self._listener.close()

    async def wait_closed(self) -> None:
        """Return once no handshake is under way."""
        await asyncio.gather(*self._connecting, return_exceptions=True)

    def _on_readable(self) -> None:
        for _ in range(_MAX_ACCEPTED):
            if self._workers.another_has_room():
                pause_s = _YIELD_S if self._workers.ready else _UNREADY_YIELD_S
                self._wait(pause_s, self._accept_what_is_left)
                return
            if not self._accept():
                return

    def _accept_what_is_left(self) -> None:
        """Accept a few connections that no other worker has accepted."""
        self._resume()
        for _ in range(1 + self._workers.count // _CONNECTIONS_FOR_ONE_MORE):
            if not self._accept():
                return

    def _accept(self) -> bool:
        """Accept a connection; return whether there may be more."""
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionAbortedError:
            # Its peer has given up.
            return True
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            logger.warning("connection_not_accepted", reason=error.strerror)
            self._wait(_EXHAUSTED_PAUSE_S, self._resume)
            return False
        self._workers.opened()
        task = self._loop.create_task(self._open(connection))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return True

    async def _open(self, connection: socket.socket) -> None:
        connection.settimeout(0)
        try:
            await self._loop.connect_accepted_socket(self._connect, connection, **self._tls)
        except (OSError, EOFError):
            # The peer has left, or did not complete its handshake (TimeoutError is an OSError).
            connection.close()
            self._workers.closed()

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        self._loop.remove_reader(self._listener)
        self._pause = self._loop.call_later(seconds, then)

    def _resume(self) -> None:
        self._stop_waiting()
        self._loop.add_reader(self._listener, self._on_readable)

    def _stop_waiting(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
