"""The interfaces of a task: a processor, a model, and a codec between them.

A processor's ``prepare`` turns inputs into items with a cost, the model's ``infer`` computes a
batch of items, and the processor's ``finish`` turns the raw results into predictions. Processor and
model may be in two processes; the codec then serialises items and raw results.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from kaiten.model_facts import ModelFacts
from kaiten.settings.models import RunnerSettings

InputT = TypeVar("InputT")
ItemT = TypeVar("ItemT")
RawT = TypeVar("RawT")
PredictionT = TypeVar("PredictionT")
InputT_contra = TypeVar("InputT_contra", contravariant=True)
ItemT_contra = TypeVar("ItemT_contra", contravariant=True)
RawT_contra = TypeVar("RawT_contra", contravariant=True)
RawT_co = TypeVar("RawT_co", covariant=True)


class Processor(Protocol[InputT_contra, ItemT, RawT_contra, PredictionT]):
    """The work on the CPU before and after the network. Each item has a ``cost``.

    Inputs of up to ``inline_chars`` characters in all are prepared on the event loop, and longer
    ones on a thread.
    """

    @property
    def inline_chars(self) -> float: ...

    def prepare(self, inputs: Sequence[InputT_contra]) -> list[ItemT]:
        """Turn inputs into items."""

    def finish(self, batch: Sequence[ItemT], raw: RawT_contra) -> list[PredictionT]:
        """Turn raw results into a prediction for each item, in order, on the event loop."""


class Model(Protocol[ItemT_contra, RawT_co]):
    """A loaded network, which computes batches of items.

    ``lanes``, ``batch_tokens``, ``batch_items``, ``packed`` and ``express`` are those of its engine
    (see runners/engines/base.py).
    """

    @property
    def lanes(self) -> int: ...
    @property
    def batch_tokens(self) -> int: ...
    @property
    def batch_items(self) -> int: ...
    @property
    def packed(self) -> bool: ...
    @property
    def express(self) -> bool: ...

    def infer(self, batch: Sequence[ItemT_contra], *, alone: bool = False) -> RawT_co:
        """Compute a batch, on a lane's thread; ``alone`` means that nothing else computes or waits.

        Offline prediction reads ``embeddings`` of the raw results, shape (items, width) or None.
        """

    def check(self) -> None:
        """Compute one known item; raises if the device no longer works."""

    def warm_up(self, tokens: int, items: int) -> None:
        """Prepare for batches of up to so many padded ``tokens`` and ``items``, and compute some.

        Raises:
            OutOfMemory: The device cannot hold the largest batch.

        """


class Codec(Protocol[ItemT, RawT]):
    """Serialises items and raw results, each item as bytes of its own."""

    def encode_items(self, items: Sequence[ItemT]) -> list[bytes]: ...
    def decode_items(self, parts: Sequence[bytes]) -> list[ItemT]:
        """Return the items.

        Raises:
            ValueError: The bytes do not encode items.

        """

    def encode_raw(self, raw: RawT) -> list[bytes]: ...
    def decode_raw(self, parts: Sequence[bytes]) -> RawT: ...


@dataclass(frozen=True, slots=True)
class Task(Generic[InputT, ItemT, RawT, PredictionT]):
    """A loaded model of a task, and its processor."""

    processor: Processor[InputT, ItemT, RawT, PredictionT]
    model: Model[ItemT, RawT]


class TaskModule(Protocol):
    """The module of a task for serving."""

    codec: Codec[Any, Any]

    def load_processor(self, folder: Path, max_length: int) -> Processor[Any, Any, Any, Any]:
        """Load a registered model without its network; ``max_length`` in tokens."""

    def load(
        self, folder: Path, max_length: int, settings: RunnerSettings, baseline: Path | None = None
    ) -> Task[Any, Any, Any, Any]:
        """Load a registered model onto its device; ``max_length`` is that of its card.

        ``baseline`` is the folder of the validation report that drift is measured against.
        """


class InspectionModule(Protocol):
    """The module of a task for registration, which imports torch."""

    def inspect(
        self,
        folder: Path,
        output: Path,
        *,
        max_length: int | None = None,
        progress: Callable[[str], None] = ...,
    ) -> ModelFacts:
        """Load the model once and describe it.

        Files that serving needs besides the folder's own are written into ``output``. Inputs of
        over ``max_length`` tokens are to be cut. ``progress`` is called with each step.

        Raises:
            ModelRejected: It is not a model of this task.

        """
