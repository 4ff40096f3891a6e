"""What the gateway needs of the rest of the house; a composition root joins them."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kaiten.events import Answer, PredictionEvent
from kaiten.feedback import Label, VersionQuality


class Classified(Answer, Protocol):
    """What a runner answers for one text."""

    @property
    def scores(self) -> NDArray[np.float32]:
        """Probabilities, shape (labels,)."""

    @property
    def index(self) -> int:
        """The most probable label's; the first of equals."""

    @property
    def truncated(self) -> bool:
        """Whether the text was over the model's maximum length, and only a part of it was read."""


class Runner(Protocol):
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
        """What all that waits for it takes, in whole seconds, at least 1."""

    def retry_after_s(
        self, subject: str, inputs: int, deadline: float, ahead: int = 0
    ) -> int | None:
        """Return when to retry, in seconds, if so many inputs of a subject would be refused now.

        None if there is room for them; ``deadline`` by time.monotonic(), and ``ahead`` the inputs
        of the subject that are to be asked for before them.
        """

    async def predict(self, inputs: Sequence[str], deadline: float) -> Sequence[Classified]:
        """Return an answer for each text, in order; ``deadline`` by time.monotonic().

        QueueFull, DeadlineExceeded, NotReady or InferenceFailed.
        """


class RunnerRegistry(Protocol):
    """The versions that serve now."""

    @property
    def ready(self) -> bool:
        """Whether every version can answer."""

    def __iter__(self) -> Iterator[Runner]:
        """Yield every runner."""

    def get(self, model: str | None) -> Runner | None:
        """Return the runner for a model name or model tag, the default for None."""


class Traffic(Protocol):
    """Told of each request to a model's route."""

    def request_started(self, route: str) -> None:
        """Note that it is being handled."""

    def request_answered(self, route: str, model: str, status: int, seconds: float) -> None:
        """Count it. ``model`` is ``name:version``, or empty where none was reached."""


class BodiesWatch(Protocol):
    """Told of the memory that bodies take."""

    def body_bytes_changed(self, size_bytes: int) -> None:
        """Note how many bytes the bodies of all requests under way take now."""

    def body_refused(self) -> None:
        """Count a request that was refused for want of memory for its body."""


class MetricsSource(Protocol):
    """Gives the metrics of all workers."""

    def exposition(self) -> tuple[bytes, str]:
        """Return them in Prometheus' text format, and its content type."""


class RouteTimes(Protocol):
    """How long a route took for its good answers (2xx), in seconds; None where there was none."""

    @property
    def route(self) -> str: ...
    @property
    def count(self) -> int:
        """Of the good answers."""

    @property
    def others(self) -> Mapping[int, int]:
        """How many answers had another status, by status."""

    @property
    def mean(self) -> float | None: ...
    @property
    def least(self) -> float | None: ...
    @property
    def most(self) -> float | None: ...
    def quantile(self, share: float) -> float | None:
        """Return the time that this share of the good answers, from 0 to 1, took at most."""


class TimesSource(Protocol):
    """Gives how long answers took, over all workers."""

    def read(self) -> tuple[datetime, Sequence[RouteTimes]]:
        """Return since when they are counted, and what each route took."""


class DriftSource(Protocol):
    """Gives the drift of each version that is served: the same from every worker."""

    def drift(self) -> Sequence[object]:
        """Return what is known of each version, with the attributes of schemas.VersionDrift."""


class AdmissionWatch(Protocol):
    """Told of what admission refuses."""

    def request_refused_early(self, reason: str) -> None:
        """Count a request refused before it was read.

        The reason is queue_full, overloaded, connections, malformed_request or headers_too_large.
        """


class LimitsWatch(Protocol):
    """Told of what the limits do."""

    def request_limited(self, limit: str) -> None:
        """Count a request that was refused by ``requests``, ``tokens`` or ``concurrency``."""

    def limits_degraded(self, *, degraded: bool) -> None:
        """Note whether this worker counts by itself, as the shared store does not answer."""


class FeedbackService(Protocol):
    """Takes labels for what was answered, and tells what they come to.

    Deadlines are by time.monotonic(); DeadlineExceeded where one is too near, DatabaseUnavailable
    where the database does not answer.
    """

    async def take(
        self,
        labels: Sequence[Label],
        models: frozenset[str] | None,
        deadline: float,
        subject: str,
    ) -> int:
        """Keep all labels for good, or none; ``models`` may be labelled, None for all of them.

        Returns how many are joined to their answers, where the others wait for theirs.
        InvalidInput, or Forbidden, for what does not fit an answer that is known; RateLimited where
        too many of the subject's, or of all, wait.
        """

    async def read(self, deadline: float) -> Sequence[VersionQuality]:
        """Return what is known of each version."""


class EventSink(Protocol):
    """Takes the events of each answer."""

    def emit(self, events: Sequence[PredictionEvent]) -> None:
        """Hand them to all subscribers; never blocks, never raises."""
