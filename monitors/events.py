"""Hands records on to several who keep them."""

from collections.abc import Callable, Sequence
from typing import Protocol

from kaiten.events import PredictionRecord


class Sink(Protocol):
    """Never blocks, never raises."""

    def put(self, records: Sequence[PredictionRecord]) -> None:
        """Keep the records, or count them as dropped."""


class FanOut:
    """Each of the sinks is given every record; they are asked for as the first comes."""

    def __init__(self, sinks: Callable[[], Sequence[Sink]]) -> None:
        self._sinks = sinks

    def put(self, records: Sequence[PredictionRecord]) -> None:
        """Hand them on."""
        for sink in self._sinks():
            sink.put(records)
