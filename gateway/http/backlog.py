"""Spreads bursts of requests, and of bytes to parse, over iterations of the event loop.

Otherwise a burst would be handled in one iteration, and a probe that arrives next would wait for
all of it.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

Start = Callable[[], None]
# Urgent turns in one iteration of the event loop.
_URGENT = 4


class _Iterated(ABC):
    """Is called once in the next iteration of the event loop, however often it is scheduled."""

    _scheduled = False

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._begin_iteration)

    def _begin_iteration(self) -> None:
        self._scheduled = False
        self._iterate()

    @abstractmethod
    def _iterate(self) -> None:
        """Do what belongs to one iteration."""


class Backlog(_Iterated):
    """Starts waiting requests round robin over their subjects, ``per_iteration`` at a time.

    Each of n waiting subjects may have ``limit`` / n requests waiting, and none more while its
    oldest has waited for longer than ``max_wait_s``. So a subject that sends more than the event
    loop can handle is refused before others are, and what it has waiting waits for about that long.
    Requests that already wait stay when n grows, so the total can exceed ``limit``.
    """

    def __init__(
        self,
        limit: int,
        per_iteration: int,
        max_wait_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit, self._per_iteration, self._max_wait_s = limit, per_iteration, max_wait_s
        self._clock = clock
        # The requests of each subject, the oldest first, and since when they wait.
        self._waiting: dict[str, deque[tuple[float, Start]]] = {}
        self._room = per_iteration

    def has_room(self, subject: str) -> bool:
        """Return whether one more request of a subject may wait."""
        requests = self._waiting.get(subject)
        if requests is None:
            return len(self._waiting) < self._limit
        since, _ = requests[0]
        few = len(requests) < self._limit // len(self._waiting)
        return few and self._clock() - since <= self._max_wait_s

    def waiting(self, subject: str) -> int:
        """Return how many requests of a subject wait."""
        return len(self._waiting.get(subject, ()))

    def starts_now(self) -> bool:
        """Return whether a request may start in this iteration, and count it if so."""
        self._schedule()
        if not self._room or self._waiting:
            return False
        self._room -= 1
        return True

    def add(self, subject: str, start: Start) -> None:
        """Queue a request; ``start`` is called in its turn."""
        self._waiting.setdefault(subject, deque()).append((self._clock(), start))

    def _iterate(self) -> None:
        self._room = self._per_iteration
        try:
            while self._room and self._waiting:
                subject, requests = next(iter(self._waiting.items()))
                # Moved to the end, so that another subject is next.
                del self._waiting[subject]
                _, start = requests.popleft()
                if requests:
                    self._waiting[subject] = requests
                self._room -= 1
                start()
        finally:
            # Whatever became of one request, the others are waiting.
            if self._waiting:
                self._schedule()


class Turns(_Iterated):
    """Shares the event loop between the connections that have something to parse or to answer.

    Turns take ``iteration_s`` of one iteration of the loop, and what the last of them takes beyond
    that. One half is for connections that wait: a new request is handled at once beside those that
    never run out. A few urgent turns are taken in addition, whatever waits.
    """

    def __init__(self, iteration_s: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._iteration_s = self._left_s = iteration_s
        self._urgent_left = _URGENT
        self._waiting: dict[Start, None] = {}

    def take(self, turn: Start, *, urgent: bool = False) -> None:
        """Call ``turn`` now if the iteration has time left, and otherwise in a later one."""
        if turn in self._waiting:
            return
        if urgent and self._urgent_left:
            self._urgent_left -= 1
            self._schedule()
            turn()
        elif self._left_s <= 0:
            self.wait(turn)
        else:
            self._run(turn)

    def wait(self, turn: Start) -> None:
        """Call ``turn`` in a later iteration, after those that wait already."""
        self._waiting.setdefault(turn)
        self._schedule()

    def _run(self, turn: Start) -> None:
        self._schedule()
        started = self.clock()
        turn()
        self._left_s -= self.clock() - started

    def _iterate(self) -> None:
        self._left_s, self._urgent_left = self._iteration_s, _URGENT
        # Each once: one that is not done yet waits again.
        for _ in range(len(self._waiting)):
            if self._left_s <= self._iteration_s / 2:
                break
            turn = next(iter(self._waiting))
            del self._waiting[turn]
            self._run(turn)
        if self._waiting:
            self._schedule()
