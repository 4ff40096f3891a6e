"""A connection's bytes: how many wait in this process, and for how long.

For each connection, the process holds at most

- ``BUFFER_BYTES`` that are received and not parsed yet, or ``BODY_BUFFER_BYTES`` of a body of known
  length: gateway/admission/protocol.py stops reading until they are parsed,
- the head that is being parsed, which gateway/http/head.py bounds,
- one request that is pipelined behind the current one,
- the body of that one until its handler takes it, up to uvicorn's 64 KiB and one read,
- ``BUFFER_BYTES`` that are written and not sent yet, and the one write that went beyond them: an
  early answer, or a slice of a large one,
- with TLS, ``BUFFER_BYTES`` that are not decrypted yet, and uvloop's own buffer of 64 KiB.

The kernel holds its receive buffer, and about ``BUFFER_BYTES`` to send (gateway/http/server.py).
A peer that reads nothing for a while is disconnected.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, cast

BUFFER_BYTES = 16_384
# Fewer and larger reads halve what it costs to receive a body, also one that is only drained.
BODY_BUFFER_BYTES = 65_536
# Of all connections: received bytes are copied out of it at once.
_RECEIVED = memoryview(bytearray(BODY_BUFFER_BYTES))


class Reader(Protocol):
    """A protocol that knows how many bytes are to come."""

    @property
    def body_bytes_left(self) -> int:
        """How many bytes of the current body are still to come, 0 if that is unknown."""


class Channel(asyncio.BufferedProtocol, asyncio.Transport):
    """The event loop's protocol for a connection, and the transport of its HTTP protocol.

    Once writing is paused, and once the connection is closed or its peer has sent all it will,
    the peer has ``stall_timeout_s`` to read some of the rest, again and again. Otherwise the
    connection is aborted: closing it would wait for that peer.
    """

    def __init__(
        self, protocol: asyncio.Protocol, stall_timeout_s: float, reader: Reader | None = None
    ) -> None:
        super().__init__()
        self.protocol, self._reader = protocol, reader
        self._stall_timeout_s = stall_timeout_s
        self._written_bytes = self._taken_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=BUFFER_BYTES)
        limit_read_buffer: Callable[..., None] | None = getattr(
            transport, "set_read_buffer_limits", None
        )
        if limit_read_buffer is not None:
            # TLS: bytes that are still encrypted.
            limit_read_buffer(high=BUFFER_BYTES)
        self.protocol.connection_made(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  asyncio's
        in_body = self._reader is not None and self._reader.body_bytes_left > BUFFER_BYTES
        return _RECEIVED if in_body else _RECEIVED[:BUFFER_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        self.protocol.data_received(bytes(_RECEIVED[:nbytes]))

    def eof_received(self) -> bool | None:
        # The transport closes itself once all is sent.
        self._watch()
        return self.protocol.eof_received()

    def pause_writing(self) -> None:
        self._watch()
        self.protocol.pause_writing()

    def resume_writing(self) -> None:
        if not self._transport.is_closing():
            self._stop_watching()
        self.protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.protocol.connection_lost(exc)
        self._stop_watching()
        # It refers to this channel, and the garbage collector takes long for thousands of them.
        self.protocol, self._reader = asyncio.Protocol(), None

    # What the HTTP protocol calls.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._written_bytes += len(data)
        self._transport.write(data)

    def close(self) -> None:
        self._transport.close()
        self._watch()

    def abort(self) -> None:
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401  asyncio's
        return self._transport.get_extra_info(name, default)

    def _watch(self) -> None:
        if self._timer is None:
            self._taken_bytes = self._count_taken_bytes()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._stall_timeout_s, self._abort_if_stalled)

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _abort_if_stalled(self) -> None:
        self._timer = None
        if self._count_taken_bytes() > self._taken_bytes:
            self._watch()
        else:
            self._transport.abort()

    def _count_taken_bytes(self) -> int:
        return self._written_bytes - self._transport.get_write_buffer_size()
