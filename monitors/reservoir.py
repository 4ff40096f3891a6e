"""A bounded sample of records that come faster than they are taken."""

import random
import threading
from collections.abc import Sequence

from kaiten.events import PredictionRecord


class Sample:
    """Keeps at most so many of what was added since it was last taken, each as likely as any other.

    By Vitter's algorithm R ("Random sampling with a reservoir", 1985). One thread adds, another
    takes.
    """

    def __init__(self, size: int, chance: random.Random) -> None:
        self._size = size
        self._chance = chance
        self._kept: list[PredictionRecord] = []
        self._seen = 0
        self._lock = threading.Lock()

    def add(self, records: Sequence[PredictionRecord]) -> int:
        """Add records, and return how many were left out, these or earlier ones."""
        with self._lock:
            room = max(0, self._size - len(self._kept))
            self._kept.extend(records[:room])
            self._seen += len(records[:room])
            for record in records[room:]:
                self._seen += 1
                place = self._chance.randrange(self._seen)
                if place < self._size:
                    self._kept[place] = record
            return len(records[room:])

    def take(self) -> list[PredictionRecord]:
        """Return what was kept, and begin anew."""
        with self._lock:
            kept, self._kept, self._seen = self._kept, [], 0
            return kept
