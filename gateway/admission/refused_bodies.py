"""How many inputs a body held that was refused for a full queue.

A caller that ignores Retry-After sends the same body again. Its inputs cannot be counted before it
is read, but its length is known, and so it is refused again without reading it.
"""

import time
from collections import OrderedDict
from collections.abc import Callable

_MAX_REMEMBERED = 1024


class RefusedBodies:
    """Remembers refused bodies by subject and length, until their callers may retry."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # The number of inputs, and until when it is remembered; the latest refusal is last.
        self._bodies: OrderedDict[tuple[str, int], tuple[int, float]] = OrderedDict()

    def add(self, subject: str, size_bytes: int, inputs: int, retry_after_s: float) -> None:
        """Remember a refused body; one of unknown length, 0, is not remembered."""
        if not size_bytes:
            return
        key = subject, size_bytes
        self._bodies[key] = inputs, self._clock() + retry_after_s
        self._bodies.move_to_end(key)
        if len(self._bodies) > _MAX_REMEMBERED:
            self._bodies.popitem(last=False)

    def inputs(self, subject: str, size_bytes: int) -> int:
        """Return the fewest inputs that a body may have: 1 unless it is remembered."""
        inputs, until = self._bodies.get((subject, size_bytes), (1, 0.0))
        return inputs if self._clock() < until else 1
