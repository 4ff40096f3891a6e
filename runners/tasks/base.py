"""What a model family is: three verbs and a price."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from kaiten.settings import Runners

ItemT = TypeVar("ItemT")
RawT = TypeVar("RawT")
PredictionT = TypeVar("PredictionT")


class Task(Protocol[ItemT, RawT, PredictionT]):
    """A loaded model of one family. Each item has a ``cost``, in tokens."""

    def prepare(self, inputs: Sequence[str]) -> list[ItemT]:
        """Turn inputs into items, on a CPU thread."""

    def infer(self, batch: Sequence[ItemT]) -> RawT:
        """Compute a batch, on the device's thread."""

    def finish(self, batch: Sequence[ItemT], raw: RawT) -> list[PredictionT]:
        """Turn what was computed into a prediction for each item, in order; on the event loop."""

    def warm_up(self) -> None:
        """Compute the smallest and the largest item once, so that no caller pays for it."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What loading a folder's model tells of it; ``max_length`` in tokens."""

    labels: Sequence[str]
    max_length: int
    architecture: str
    framework_versions: Mapping[str, str]


class TaskModule(Protocol):
    """What a module of this package offers."""

    def load(self, folder: Path, max_length: int, settings: Runners) -> Task[Any, Any, Any]:
        """Load a registered model onto its device; ``max_length`` as its card says."""

    def inspect(self, folder: Path) -> ModelFacts:
        """Load the model once and tell what it is; ModelRejected if it is none of this task."""
