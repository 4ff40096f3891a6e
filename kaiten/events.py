"""The prediction event: what monitoring receives about each answered item."""

from typing import NamedTuple, Protocol

# In the folder of a validation report: the profile of its answers, the baseline of drift.
BASELINE_FILE = "reference.bin"
# The arm whose answers go to the callers.
PRODUCTION = "production"


class Answer(Protocol):
    """The measures of one answered text.

    ``entropy`` is that of the probabilities, in nats; ``distance`` is the embedding's to the
    nearest centroid of the baseline, None without centroids.
    """

    @property
    def tokens(self) -> int: ...
    @property
    def unknown_tokens(self) -> int: ...
    @property
    def confidence(self) -> float: ...
    @property
    def entropy(self) -> float: ...
    @property
    def distance(self) -> float | None: ...


class PredictionEvent(NamedTuple):
    """One answered item, an Answer with its origin; emitted once its request is answered.

    ``item`` is its index in the request, ``subject`` is Principal.identity of the caller, and
    ``truncated`` tells that the model has read only a part of the text.

    The text is here for drift detection, which measures it off the event loop. It stays in memory
    only, until then: no subscriber may keep it, log it or write it. A tuple, because a frozen
    dataclass takes three times as long to create for each item of a request.
    """

    request_id: str
    item: int
    subject: str
    model_tag: str
    text: str
    label: str
    tokens: int
    unknown_tokens: int
    confidence: float
    entropy: float
    distance: float | None
    truncated: bool
    arm: str = PRODUCTION

    def __repr__(self) -> str:
        """Show where the event comes from, and never its text."""
        return (
            f"PredictionEvent({self.request_id!r}, item={self.item}, model_tag={self.model_tag!r})"
        )
