"""What a model family is: three verbs and a price."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from kaiten.settings import Runners

ItemT = TypeVar("ItemT")
RawT = TypeVar("RawT")
PredictionT = TypeVar("PredictionT")


class Task(Protocol[ItemT, RawT, PredictionT]):
    """A loaded model of one family. Each item has a ``cost``, in tokens.

    ``lanes``, ``batch_tokens``, ``batch_items`` and ``packed`` are its engine's: how many batches
    it computes at once, each on a lasting thread, how many padded tokens and items it wants in one,
    and whether it computes no padding.
    """

    @property
    def lanes(self) -> int: ...
    @property
    def batch_tokens(self) -> int: ...
    @property
    def batch_items(self) -> int: ...
    @property
    def packed(self) -> bool: ...

    def prepare(self, inputs: Sequence[str]) -> list[ItemT]:
        """Turn inputs into items; cheap enough for the event loop where they are few and short."""

    def infer(self, batch: Sequence[ItemT], *, alone: bool = False) -> RawT:
        """Compute a batch, on a lane's thread; ``alone``: nothing else computes or waits."""

    def finish(self, batch: Sequence[ItemT], raw: RawT) -> list[PredictionT]:
        """Turn what was computed into a prediction for each item, in order; on the event loop."""

    def check(self) -> None:
        """Compute one item that is known to work; raises where the device does not any more."""

    def warm_up(self, tokens: int, items: int) -> None:
        """Compute once, so that no caller pays for it, up to the largest batch that there may be.

        That is one of so many padded ``tokens`` or so many ``items``. OutOfMemory where the device
        could not hold it.
        """


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """The engine that a version was registered for, and why.

    ``max_difference`` is the largest absolute difference between its logits and torch's over so
    many ``texts``; None where nothing could be compared.
    """

    name: str
    reason: str
    texts: int = 0
    max_difference: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What loading a folder's model tells of it; ``max_length`` in tokens."""

    labels: Sequence[str]
    max_length: int
    architecture: str
    framework_versions: Mapping[str, str]
    engine: EngineFacts


class TaskModule(Protocol):
    """What serving a task needs of its package."""

    def load(self, folder: Path, max_length: int, settings: Runners) -> Task[Any, Any, Any]:
        """Load a registered model onto its device; ``max_length`` as its card says."""


class InspectionModule(Protocol):
    """What registering a model of a task needs of its package."""

    def inspect(self, folder: Path, made: Path) -> ModelFacts:
        """Load the model once and tell what it is; ModelRejected if it is none of this task.

        What serving needs besides the folder's own files is written into ``made``.
        """
