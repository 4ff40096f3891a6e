"""What passes between a worker and a device process: frames of plain bytes, and never pickle.

A frame is the length of its body and the body: what kind it is, the number of the call that it
belongs to, and the kind's own content. Both ends run the same code on the same machine, so numbers
are in its byte order, and a frame that makes no sense ends the connection.
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
# The deadline, and how long the request's id, its subject's name and the list of parts are.
_ASK = struct.Struct("=dHHI")
# What it came to, when to try again, how long all that waits takes, and the number of parts.
_ANSWER = struct.Struct("=BIII")
# More than any request may hold: whoever announces it does not speak our language.
_MOST_BYTES = 1 << 28


class Kind(IntEnum):
    """What a frame says."""

    HELLO = 1
    WELCOME = 2
    ASK = 3
    CANCEL = 4
    ANSWER = 5
    PING = 6
    PONG = 7


class _Outcome(IntEnum):
    """What became of a call."""

    ANSWERED = 0
    QUEUE_FULL = 1
    DEADLINE_EXCEEDED = 2
    NOT_READY = 3
    FAILED = 4


@dataclass(frozen=True, slots=True)
class Ask:
    """A call: its items as bytes, and when it is due by time.monotonic().

    ``request_id`` is for the log, and ``subject`` whose share of the device it takes.
    """

    parts: Sequence[bytes]
    deadline: float
    request_id: str | None = None
    subject: str = ""

    def encode(self, number: int) -> bytes:
        """Return the whole frame."""
        name, subject = (self.request_id or "").encode(), self.subject.encode()
        head = _ASK.pack(self.deadline, len(name), len(subject), len(self.parts))
        return frame(Kind.ASK, number, head, name, subject, *_joined(self.parts))

    @classmethod
    def decode(cls, content: memoryview) -> "Ask":
        """Return what a frame's content says; struct.error or ValueError for nonsense."""
        deadline, name_size, subject_size, count = _ASK.unpack_from(content)
        rest = content[_ASK.size :]
        name, rest = str(rest[:name_size], "utf-8"), rest[name_size:]
        subject, rest = str(rest[:subject_size], "utf-8"), rest[subject_size:]
        return cls(_parted(rest, count), deadline, name or None, subject)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a call: the results as bytes, or an error, and how long the queue is."""

    parts: Sequence[bytes] = ()
    error: KaitenError | None = None
    queue_delay_s: int = 1

    def encode(self, number: int) -> bytes:
        """Return the whole frame."""
        outcome, retry_after_s = _told(self.error)
        told = _ANSWER.pack(outcome, retry_after_s, self.queue_delay_s, len(self.parts))
        return frame(Kind.ANSWER, number, told, *_joined(self.parts))

    @classmethod
    def decode(cls, content: memoryview) -> "Answer":
        """Return what a frame's content says; struct.error or ValueError for nonsense."""
        outcome, retry_after_s, queue_delay_s, count = _ANSWER.unpack_from(content)
        parts = _parted(content[_ANSWER.size :], count)
        return cls(parts, _error(_Outcome(outcome), retry_after_s), queue_delay_s)


def frame(kind: Kind, number: int, *content: bytes) -> bytes:
    """Return a whole frame."""
    body = b"".join((_HEAD.pack(kind, number), *content))
    return _LENGTH.pack(len(body)) + body


class FrameProtocol(asyncio.Protocol):
    """One end of a connection; who uses it says what to do with a frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        # Whether the other end reads more slowly than is written here.
        self.congested = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is one by its methods only.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's signature
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            self._take_frames()
        except (ValueError, struct.error):
            self._buffer.clear()
            self.hang_up()

    def pause_writing(self) -> None:
        self.congested = True

    def resume_writing(self) -> None:
        self.congested = False

    def frame_received(self, kind: Kind, number: int, content: memoryview) -> None:
        """Take a frame; ValueError or struct.error ends the connection."""
        raise NotImplementedError

    @property
    def connected(self) -> bool:
        """Whether the connection stands."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, whole: bytes) -> None:
        """Send a frame; to nobody, if the other end has gone."""
        if self._transport is not None:
            self._transport.write(whole)

    def hang_up(self) -> None:
        """End the connection at once: nobody waits for what is still to be written."""
        if self._transport is not None:
            self._transport.abort()

    def _take_frames(self) -> None:
        start = 0
        while len(self._buffer) >= start + _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._buffer, start)
            body = start + _LENGTH.size
            if size > _MOST_BYTES:
                raise ValueError(f"a frame of {size} bytes")
            if len(self._buffer) < body + size:
                break
            # A copy, so that the buffer may move while the content is in use.
            taken = memoryview(bytes(self._buffer[body : body + size]))
            kind, number = _HEAD.unpack_from(taken)
            start = body + size
            self.frame_received(Kind(kind), number, taken[_HEAD.size :])
        del self._buffer[:start]


def _joined(parts: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return the parts after their lengths."""
    return struct.pack(f"={len(parts)}I", *map(len, parts)), *parts


def _parted(content: memoryview, count: int) -> list[bytes]:
    """Return the parts that _joined joined; ValueError unless they fill the content."""
    lengths = struct.unpack_from(f"={count}I", content)
    parts, at = [], _LENGTH.size * count
    for length in lengths:
        parts.append(bytes(content[at : at + length]))
        at += length
    if at != len(content):
        raise ValueError(f"{at} bytes were told, and {len(content)} came")
    return parts


def _told(error: KaitenError | None) -> tuple[_Outcome, int]:
    """Return an outcome, and the seconds after which to try again."""
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


def _error(outcome: _Outcome, retry_after_s: int) -> KaitenError | None:
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
