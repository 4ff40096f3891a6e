"""What the gateway needs of the rest of the house; a composition root joins them."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kaiten.context import PredictionRecord


class Classified(Protocol):
    """What a runner answers for one text."""

    @property
    def scores(self) -> NDArray[np.float32]:
        """Probabilities, shape (labels,)."""

    @property
    def tokens(self) -> int:
        """The length that was computed, in tokens."""


class Runner(Protocol):
    """One version of a model, whatever process or device it runs in."""

    @property
    def tag(self) -> str:
        """``name:version``."""

    @property
    def labels(self) -> Sequence[str]:
        """The label of each score."""

    @property
    def ready(self) -> bool:
        """Whether it can answer now."""

    async def predict(self, inputs: Sequence[str]) -> Sequence[Classified]:
        """Return an answer for each text, in order; QueueFull, NotReady or InferenceFailed."""


class Traffic(Protocol):
    """Told of each request to a model's route."""

    def request_started(self, endpoint: str) -> None:
        """Note that it is being handled."""

    def request_answered(self, endpoint: str, model: str, status: int, seconds: float) -> None:
        """Count it. ``model`` is ``name:version``, or empty where none was reached."""


class MetricsSource(Protocol):
    """Gives the metrics of all workers."""

    def exposition(self) -> tuple[bytes, str]:
        """Return them in Prometheus' text format, and its content type."""


class RecordSink(Protocol):
    """Takes the records of answered inputs; never blocks, never raises."""

    def put(self, records: Sequence[PredictionRecord]) -> None:
        """Keep the records for profiling, or count them as dropped."""
