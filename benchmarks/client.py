"""An HTTP client that costs little, as it shares the cores with the server that it loads."""

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

# Stands for a status where the connection ended before the answer did.
LOST = 0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)")
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked")
# uvicorn closes a connection that was idle for 5 seconds; ours must not be writing to it just then.
_IDLE_LIMIT_S = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request came to; times by the monotonic clock, ``port`` is the client's own.

    ``connected`` is when it had a connection, a new one or one that waited.
    """

    due: float
    sent: float
    connected: float
    done: float
    status: int
    port: int
    retry_after: bool
    body: bytes

    @property
    def seconds(self) -> float:
        """How long it took from when it was due."""
        return self.done - self.due

    def total(self, metric: str) -> float:
        """Return the sum of a metric over its labels, of an answer of /metrics."""
        rows = self.body.decode().splitlines()
        return sum(float(row.rpartition(" ")[2]) for row in rows if row.startswith(f"{metric}{{"))


def _unchunked(buffer: bytearray, start: int) -> tuple[bytes, int]:
    """Return a body in chunks, and where it ends: past the buffer, if more is to come."""
    parts: list[bytes] = []
    beyond = len(buffer) + 1
    while (end_of_size := buffer.find(b"\r\n", start)) >= 0:
        size = int(buffer[start:end_of_size].partition(b";")[0], 16)
        start = end_of_size + 2
        parts.append(bytes(buffer[start : start + size]))
        start += size + 2
        if not size:
            # No server here sends trailers: the empty chunk ends it.
            return b"".join(parts), start
    return b"", beyond


def encode(port: int, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return a whole POST request with a JSON body."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


class _Connection(asyncio.Protocol):
    """One connection that is kept alive, with one request at a time."""

    def __init__(self) -> None:
        self.port = LOST
        self.open = False
        self.idle_since = 0.0
        self._buffer = bytearray()
        self._answer: asyncio.Future[tuple[bytes, bytes]] | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is one by its methods only.
        self._transport, self.open = cast("asyncio.Transport", transport), True
        self.port = transport.get_extra_info("sockname")[1]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end_of_head = self._buffer.find(b"\r\n\r\n")
        if end_of_head < 0:
            return
        head = bytes(self._buffer[:end_of_head]).lower()
        start = end_of_head + 4
        if _CHUNKED.search(head):
            body, end = _unchunked(self._buffer, start)
        else:
            length = _LENGTH.search(head)
            end = start + (int(length[1]) if length else 0)
            body = bytes(self._buffer[start:end])
        if len(self._buffer) < end or self._answer is None:
            return
        del self._buffer[:end]
        self._settle((head, body))

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._settle(exc or ConnectionError("closed before the answer"))

    def _settle(self, outcome: tuple[bytes, bytes] | Exception) -> None:
        """Give the outcome to the waiting request, unless it was cancelled."""
        answer, self._answer = self._answer, None
        if answer is None or answer.done():
            return
        if isinstance(outcome, Exception):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)

    async def ask(self, request: bytes) -> tuple[bytes, bytes]:
        """Return an answer's head, in lower case, and body; OSError if the connection ends."""
        if not self.open:
            raise ConnectionError("closed")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self._transport.close()


@dataclass
class Pool:
    """Connections to one server, opened as they are needed and used again, the newest first."""

    port: int
    busy: int = 0
    _idle: list[_Connection] = field(default_factory=list)

    async def ask(self, request: bytes, due: float | None = None) -> Answer:
        """Ask once, whatever comes of it; ``due`` is when it was meant to be sent."""
        sent = connected = time.monotonic()
        port, self.busy = LOST, self.busy + 1
        try:
            connection = self._waiting(sent) or await self._connect()
            port, connected = connection.port, time.monotonic()
            head, body = await connection.ask(request)
        except OSError:
            status, head, body = LOST, b"", b""
        else:
            status = int(head[9:12])
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        finally:
            self.busy -= 1
        retry = b"\r\nretry-after: " in head
        return Answer(due or sent, sent, connected, time.monotonic(), status, port, retry, body)

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(_Connection, "127.0.0.1", self.port))[1]

    def _waiting(self, now: float) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.open and now - connection.idle_since < _IDLE_LIMIT_S:
                return connection
            connection.close()
        return None

    async def close(self) -> None:
        """Close the idle connections; the event loop closes their sockets in its next round."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        await asyncio.sleep(0)
