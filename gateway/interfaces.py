"""The parts of other layers that the gateway uses; the composition root passes them in."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kaiten.events import Answer, PredictionEvent
from kaiten.feedback import Label, VersionQuality


class Classified(Answer, Protocol):
    """A runner's answer for one text."""

    @property
    def scores(self) -> NDArray[np.float32]:
        """Probabilities, shape (labels,)."""

    @property
    def index(self) -> int:
        """The index of the most probable label; the first of equals."""

    @property
    def truncated(self) -> bool:
        """Whether the text was over the model's maximum length, and only a part of it was read."""


class PredictionRunner(Protocol):
    """One version of a model, whatever process or device it runs in."""

    @property
    def model_tag(self) -> str:
        """``name:version``."""

    @property
    def labels(self) -> Sequence[str]:
        """The label of each score."""

    @property
    def ready(self) -> bool:
        """Whether it can answer now."""

    @property
    def queue_delay_s(self) -> int:
        """The time that the waiting items take, in whole seconds, at least 1."""

    def retry_after_s(
        self, subject: str, inputs: int, deadline: float, ahead: int = 0
    ) -> int | None:
        """Return when to retry, in seconds, if so many inputs of a subject would be rejected now.

        None if there is room for them. ``deadline`` is by time.monotonic(), and ``ahead`` is the
        number of the subject's inputs that come before them.
        """

    async def predict(self, inputs: Sequence[str], deadline: float) -> Sequence[Classified]:
        """Return an answer for each text, in order; ``deadline`` by time.monotonic().

        Raises:
            QueueFull: There is no room in the queue.
            DeadlineExceeded: The answers would be late.
            NotReady: The runner is not warm.
            InferenceFailed: An input failed.

        """


class RunnerRegistry(Protocol):
    """The versions that serve now."""

    @property
    def ready(self) -> bool:
        """Whether every version can answer."""

    def __iter__(self) -> Iterator[PredictionRunner]:
        """Yield every runner."""

    def get(self, model: str | None) -> PredictionRunner | None:
        """Return the runner for a model name or model tag, the default for None."""


class WorkerConnections(Protocol):
    """The connections of this worker and of the others that share its sockets."""

    @property
    def ready(self) -> bool:
        """Whether this worker can answer predictions."""

    @property
    def count(self) -> int:
        """The connections that this worker has."""

    def another_has_room(self) -> bool:
        """Whether a new connection suits another ready worker better than this one."""

    def opened(self) -> None:
        """Count a connection of this worker."""

    def closed(self) -> None:
        """Count a connection of this worker no more."""


class GatewayMetrics(Protocol):
    """Counts what happens at the edge."""

    def request_started(self, route: str) -> None:
        """Note that a request to a model's route is being handled."""

    def request_answered(self, route: str, model_tag: str, code: int, seconds: float) -> None:
        """Count an answer; ``model_tag`` is empty if no model was reached."""

    def request_refused_early(self, reason: str) -> None:
        """Count a request that admission rejected before it was read.

        The reason is queue_full, overloaded, connections, malformed_request or headers_too_large.
        """

    def request_limited(self, limit: str) -> None:
        """Count a request that was rejected by ``requests``, ``tokens`` or ``concurrency``."""

    def limits_degraded(self, *, degraded: bool) -> None:
        """Note whether this worker counts alone, because the shared store does not answer."""

    def body_bytes_changed(self, size_bytes: int) -> None:
        """Note how many bytes the bodies of all current requests take."""

    def body_refused(self) -> None:
        """Count a request that was rejected because there was no memory for its body."""


class RouteTimings(Protocol):
    """The times of a route's successful answers (2xx), in seconds; None without any."""

    @property
    def route(self) -> str: ...
    @property
    def count(self) -> int:
        """The number of successful answers."""

    @property
    def others(self) -> Mapping[int, int]:
        """The number of other answers, by status."""

    @property
    def mean(self) -> float | None: ...
    @property
    def least(self) -> float | None: ...
    @property
    def most(self) -> float | None: ...
    def quantile(self, share: float) -> float | None:
        """Return the time within which this share of the successful answers was given."""


class LatencySource(Protocol):
    """The latency of all workers' answers."""

    def read(self) -> tuple[datetime, Sequence[RouteTimings]]:
        """Return the start of the measurement, and the latency of each route."""


class DriftReporter(Protocol):
    """The drift of each served version: the same from every worker."""

    def drift(self) -> Sequence[object]:
        """Return the state of each version, with the attributes of VersionDrift."""


class LabelStore(Protocol):
    """Stores labels for predictions, and measures versions by them.

    Deadlines are by time.monotonic().

    Raises:
        DeadlineExceeded: From both methods, if a deadline is too near.
        DatabaseUnavailable: From both methods, if the database does not answer.

    """

    async def take(
        self,
        labels: Sequence[Label],
        models: frozenset[str] | None,
        deadline: float,
        subject: str,
    ) -> int:
        """Store all labels durably, or none; only ``models`` may be labelled, None for all.

        Returns how many labels were joined to their predictions; the others wait for theirs.

        Raises:
            InvalidInput: A label does not fit its prediction.
            Forbidden: A prediction is of another model.
            RateLimited: Too many labels wait, of the subject or in total.

        """

    async def read(self, deadline: float) -> Sequence[VersionQuality]:
        """Return the quality of each version."""


class EventSink(Protocol):
    """Receives the events of each answer."""

    def emit(self, events: Sequence[PredictionEvent]) -> None:
        """Hand them to all subscribers; never blocks, never raises."""
