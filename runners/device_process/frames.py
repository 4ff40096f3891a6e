"""The frames between a worker and a device process: plain bytes, never pickle.

A frame is the length of its body and the body: its kind, the number of its call, and content by
kind. Both processes run the same code on the same machine, so numbers are in its byte order, and an
invalid frame ends the connection.
"""

import asyncio
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import cast

from kaiten.errors import DeadlineExceeded, InferenceFailed, KaitenError, NotReady, QueueFull

_LENGTH = struct.Struct("=I")
_HEAD = struct.Struct("=BI")
# The deadline, and the lengths of the request id, the subject and the list of parts.
_REQUEST = struct.Struct("=dHHI")
# The outcome, the seconds until a retry, the queue delay in seconds, and the number of parts.
_RESPONSE = struct.Struct("=BIII")
# Longer than any valid frame.
_MAX_BYTES = 1 << 28


class Kind(IntEnum):
    """The kind of a frame."""

    HELLO = 1
    WELCOME = 2
    REQUEST = 3
    CANCEL = 4
    RESPONSE = 5
    PING = 6
    PONG = 7


class _Outcome(IntEnum):
    """The outcome of a call."""

    ANSWERED = 0
    QUEUE_FULL = 1
    DEADLINE_EXCEEDED = 2
    NOT_READY = 3
    FAILED = 4


@dataclass(frozen=True, slots=True)
class DeviceRequest:
    """A call: its items as bytes, and its deadline by time.monotonic().

    ``request_id`` is for the log, and ``subject`` for fair queueing.
    """

    parts: Sequence[bytes]
    deadline: float
    request_id: str | None = None
    subject: str = ""

    def encode(self, number: int) -> bytes:
        """Return the whole frame."""
        name, subject = (self.request_id or "").encode(), self.subject.encode()
        head = _REQUEST.pack(self.deadline, len(name), len(subject), len(self.parts))
        return frame(Kind.REQUEST, number, head, name, subject, *_pack_parts(self.parts))

    @classmethod
    def decode(cls, content: memoryview) -> "DeviceRequest":
        """Return the content of a frame.

        Raises:
            ValueError, struct.error: The content is invalid.

        """
        deadline, name_size, subject_size, count = _REQUEST.unpack_from(content)
        rest = content[_REQUEST.size :]
        name, rest = str(rest[:name_size], "utf-8"), rest[name_size:]
        subject, rest = str(rest[:subject_size], "utf-8"), rest[subject_size:]
        return cls(_unpack_parts(rest, count), deadline, name or None, subject)


@dataclass(frozen=True, slots=True)
class DeviceResponse:
    """The results of a call as bytes, or its error, and the queue delay."""

    parts: Sequence[bytes] = ()
    error: KaitenError | None = None
    queue_delay_s: int = 1

    def encode(self, number: int) -> bytes:
        """Return the whole frame."""
        outcome, retry_after_s = _outcome_of(self.error)
        head = _RESPONSE.pack(outcome, retry_after_s, self.queue_delay_s, len(self.parts))
        return frame(Kind.RESPONSE, number, head, *_pack_parts(self.parts))

    @classmethod
    def decode(cls, content: memoryview) -> "DeviceResponse":
        """Return the content of a frame.

        Raises:
            ValueError, struct.error: The content is invalid.

        """
        outcome, retry_after_s, queue_delay_s, count = _RESPONSE.unpack_from(content)
        parts = _unpack_parts(content[_RESPONSE.size :], count)
        return cls(parts, _error_of(_Outcome(outcome), retry_after_s), queue_delay_s)


def frame(kind: Kind, number: int, *content: bytes) -> bytes:
    """Return a whole frame."""
    body = b"".join((_HEAD.pack(kind, number), *content))
    return _LENGTH.pack(len(body)) + body


class FrameProtocol(asyncio.Protocol):
    """One end of a connection; subclasses handle its frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        # Whether the other end reads more slowly than this one writes.
        self.congested = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport has the methods, but not the type.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's signature
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            self._handle_frames()
        except (ValueError, struct.error):
            self._buffer.clear()
            self.disconnect()

    def pause_writing(self) -> None:
        self.congested = True

    def resume_writing(self) -> None:
        self.congested = False

    def frame_received(self, kind: Kind, number: int, content: memoryview) -> None:
        """Handle a frame; a ValueError or struct.error ends the connection."""
        raise NotImplementedError

    @property
    def connected(self) -> bool:
        """Whether the connection is open."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, whole: bytes) -> None:
        """Send a frame, unless the connection has ended."""
        if self._transport is not None:
            self._transport.write(whole)

    def disconnect(self) -> None:
        """Close the connection at once, and discard unsent frames."""
        if self._transport is not None:
            self._transport.abort()

    def _handle_frames(self) -> None:
        start = 0
        while len(self._buffer) >= start + _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._buffer, start)
            body = start + _LENGTH.size
            if size > _MAX_BYTES:
                raise ValueError(f"a frame of {size} bytes")
            if len(self._buffer) < body + size:
                break
            # A copy, so that the buffer may move while the content is in use.
            content = memoryview(bytes(self._buffer[body : body + size]))
            kind, number = _HEAD.unpack_from(content)
            start = body + size
            self.frame_received(Kind(kind), number, content[_HEAD.size :])
        del self._buffer[:start]


def _pack_parts(parts: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return the parts after their lengths."""
    return struct.pack(f"={len(parts)}I", *map(len, parts)), *parts


def _unpack_parts(content: memoryview, count: int) -> list[bytes]:
    """Return the parts that _pack_parts packed.

    Raises:
        ValueError: They do not fill the content.

    """
    lengths = struct.unpack_from(f"={count}I", content)
    parts, at = [], _LENGTH.size * count
    for length in lengths:
        parts.append(bytes(content[at : at + length]))
        at += length
    if at != len(content):
        raise ValueError(f"{at} bytes were announced, and {len(content)} were received")
    return parts


def _outcome_of(error: KaitenError | None) -> tuple[_Outcome, int]:
    """Return an outcome, and the seconds after which to retry."""
    match error:
        case None:
            return _Outcome.ANSWERED, 0
        case QueueFull():
            return _Outcome.QUEUE_FULL, error.retry_after_s
        case DeadlineExceeded():
            return _Outcome.DEADLINE_EXCEEDED, error.retry_after_s
        case NotReady():
            return _Outcome.NOT_READY, 0
        case _:
            return _Outcome.FAILED, 0


def _error_of(outcome: _Outcome, retry_after_s: int) -> KaitenError | None:
    match outcome:
        case _Outcome.ANSWERED:
            return None
        case _Outcome.QUEUE_FULL:
            return QueueFull(retry_after_s)
        case _Outcome.DEADLINE_EXCEEDED:
            return DeadlineExceeded(retry_after_s)
        case _Outcome.NOT_READY:
            return NotReady()
        case _Outcome.FAILED:
            return InferenceFailed()
