"""A bounded random sample of events that come faster than they are measured."""

import sys
import threading
from collections.abc import Sequence
from random import Random

from kaiten.events import PredictionEvent


class Reservoir:
    """A uniform random sample of the events since it was last taken.

    It holds at most ``max_events``, by Vitter's algorithm R ("Random sampling with a reservoir",
    1985). If their texts exceed ``max_text_bytes``, random events are dropped and the sample stays
    as small until it is taken. One thread adds, another takes.
    """

    def __init__(self, max_events: int, max_text_bytes: int, random: Random) -> None:
        self._max_events = max_events
        self._max_text_bytes = max_text_bytes
        self._random = random
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._events: list[PredictionEvent] = []
        self._capacity = self._max_events
        self._text_bytes = 0
        self._seen = 0

    def add(self, events: Sequence[PredictionEvent]) -> int:
        """Add events; return how many were dropped, these or earlier ones."""
        text_bytes = sum([sys.getsizeof(event.text) for event in events])
        with self._lock:
            before = len(self._events)
            if (
                before + len(events) <= self._capacity
                and self._text_bytes + text_bytes <= self._max_text_bytes
            ):
                self._events += events
                self._seen += len(events)
                self._text_bytes += text_bytes
                return 0
            for event in events:
                self._add(event)
            return before + len(events) - len(self._events)

    def take(self) -> list[PredictionEvent]:
        """Return the sample, and begin a new one."""
        with self._lock:
            events = self._events
            self._clear()
            return events

    def _add(self, event: PredictionEvent) -> None:
        self._seen += 1
        if len(self._events) < self._capacity:
            self._events.append(event)
        else:
            index = self._random.randrange(self._seen)
            if index >= self._capacity:
                return
            self._text_bytes -= sys.getsizeof(self._events[index].text)
            self._events[index] = event
        self._text_bytes += sys.getsizeof(event.text)
        while self._text_bytes > self._max_text_bytes and len(self._events) > 1:
            self._drop_one()

    def _drop_one(self) -> None:
        index = self._random.randrange(len(self._events))
        self._events[index], self._events[-1] = self._events[-1], self._events[index]
        self._text_bytes -= sys.getsizeof(self._events.pop().text)
        self._capacity = len(self._events)
