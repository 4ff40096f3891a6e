"""What a model family is: three verbs and a price.

``prepare`` and ``finish`` are its processor's, ``infer`` its network's. They meet in one process,
or live in two, and then a codec carries what passes between them.
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
    """What a family does on the CPU, before and after its network. Each item has a ``cost``.

    ``inline_chars`` is how many characters of inputs are prepared on the event loop, in all; more
    are prepared on a thread.
    """

    @property
    def inline_chars(self) -> float: ...

    def prepare(self, inputs: Sequence[InputT_contra]) -> list[ItemT]:
        """Turn inputs into items."""

    def finish(self, batch: Sequence[ItemT], raw: RawT_contra) -> list[PredictionT]:
        """Turn what was computed into a prediction for each item, in order; on the event loop."""


class Model(Protocol[ItemT_contra, RawT_co]):
    """A loaded network, which computes batches of items.

    ``lanes``, ``batch_tokens``, ``batch_items``, ``packed`` and ``express`` are its engine's: how
    many batches it computes at once, each on a lasting thread, how many padded tokens and items it
    wants in one, whether it computes no padding, and whether it can compute one more small batch.
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
        """Compute a batch, on a lane's thread; ``alone``: nothing else computes or waits.

        A validation reads ``embeddings`` of what comes out, shape (items, width), or None.
        """

    def check(self) -> None:
        """Compute one item that is known to work; raises where the device does not any more."""

    def warm_up(self, tokens: int, items: int) -> None:
        """Compute once, so that no caller pays for it, up to the largest batch that there may be.

        That is one of so many padded ``tokens`` or so many ``items``. OutOfMemory where the device
        could not hold it.
        """


class Codec(Protocol[ItemT, RawT]):
    """How items, and what was computed of them, travel between processes: as bytes, one each."""

    def encode_items(self, items: Sequence[ItemT]) -> list[bytes]: ...
    def decode_items(self, parts: Sequence[bytes]) -> list[ItemT]:
        """Return the items; ValueError for bytes that are none."""

    def encode_raw(self, raw: RawT) -> list[bytes]: ...
    def decode_raw(self, parts: Sequence[bytes]) -> RawT: ...


@dataclass(frozen=True, slots=True)
class Task(Generic[InputT, ItemT, RawT, PredictionT]):
    """A model of one family, with all that serving it in one process takes."""

    processor: Processor[InputT, ItemT, RawT, PredictionT]
    model: Model[ItemT, RawT]


class TaskModule(Protocol):
    """What serving a task needs of its package."""

    codec: Codec[Any, Any]

    def load_processor(self, folder: Path, max_length: int) -> Processor[Any, Any, Any, Any]:
        """Load what a registered model needs besides its network; ``max_length`` in tokens."""

    def load(
        self, folder: Path, max_length: int, settings: RunnerSettings, reference: Path | None = None
    ) -> Task[Any, Any, Any, Any]:
        """Load a registered model onto its device; ``max_length`` as its card says.

        ``reference`` is the folder of the report that answers are measured from, if there is one.
        """


class InspectionModule(Protocol):
    """What registering a model of a task needs of its package."""

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
            ModelRejected: It is no model of this task.

        """
