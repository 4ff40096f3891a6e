"""Bounds the memory that request bodies take in a worker, and shares it between subjects."""

from collections import Counter
from types import TracebackType
from typing import Self

from gateway.interfaces import GatewayMetrics
from kaiten.errors import BodyMemoryFull


class BodyMemory:
    """Bounds the bytes of all bodies, from before they are read until their requests end.

    A subject may hold the largest body, ``max_body_bytes``, as long as there is room. Beyond that
    it may hold as much as it leaves free for all others, less one largest body (dynamic
    thresholds). That is about half of the limit if it is alone, and a third if two subjects do the
    same. So subjects that hold more than one largest body leave room for one to another.
    """

    def __init__(self, limit_bytes: int, max_body_bytes: int, metrics: GatewayMetrics) -> None:
        self._free_bytes = limit_bytes
        self._limit_bytes = limit_bytes
        self._max_body_bytes = max_body_bytes
        self._held: Counter[str] = Counter()
        self._metrics = metrics

    def reservation(self, subject: str) -> "Reservation":
        """Return an empty reservation, a context manager."""
        return Reservation(self, subject)

    def acquire(self, subject: str, size_bytes: int) -> None:
        """Acquire bytes for a subject.

        Raises:
            BodyMemoryFull: The subject would hold more than its share.

        """
        left = self._free_bytes - size_bytes
        held = self._held[subject] + size_bytes
        is_one_body = held <= self._max_body_bytes and left >= 0
        if not is_one_body and held > left - self._max_body_bytes:
            self._metrics.body_refused()
            raise BodyMemoryFull
        self._change(subject, size_bytes)

    def release(self, subject: str, size_bytes: int) -> None:
        """Release acquired bytes."""
        self._change(subject, -size_bytes)
        if not self._held[subject]:
            del self._held[subject]

    def _change(self, subject: str, size_bytes: int) -> None:
        self._held[subject] += size_bytes
        self._free_bytes -= size_bytes
        self._metrics.body_bytes_changed(self._limit_bytes - self._free_bytes)


class Reservation:
    """The memory of one request's body, released when the ``with`` block ends."""

    def __init__(self, memory: BodyMemory, subject: str) -> None:
        self._memory = memory
        self._subject = subject
        self._size_bytes = 0

    def grow_to(self, size_bytes: int) -> None:
        """Reserve at least this many bytes in total.

        Raises:
            BodyMemoryFull: The subject may not hold so many.

        """
        missing_bytes = size_bytes - self._size_bytes
        if missing_bytes > 0:
            self._memory.acquire(self._subject, missing_bytes)
            self._size_bytes = size_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._size_bytes:
            self._memory.release(self._subject, self._size_bytes)
            self._size_bytes = 0
