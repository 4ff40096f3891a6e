"""What runners tell whoever watches them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One batch that was computed. Durations in seconds; waits are one an item."""

    size: int
    tokens: int
    padded_tokens: int
    queue_seconds: Sequence[float]
    inference_seconds: float

    @property
    def padding_ratio(self) -> float:
        """The share of the computed tokens that was padding, from 0 to below 1."""
        # Items may cost nothing: a tokenizer without special tokens finds none in some texts.
        return 1 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0


class Observer(Protocol):
    """Told of every event, on the event loop: it must return at once, and not raise.

    If it does raise, the batcher dies, and with it the runner's readiness.
    """

    def queue_changed(self, items: int) -> None:
        """Tell how many items wait now, to be prepared or for their batch."""

    def batch_computed(self, report: BatchReport) -> None:
        """Tell of a batch that was computed."""

    def batch_failed(self) -> None:
        """Tell of a batch, or a part of one, that raised; it will be tried again in halves."""

    def out_of_memory(self) -> None:
        """Tell of a batch that the device has no memory for; it will be tried again in halves."""

    def device_hung(self) -> None:
        """Tell of work that has not ended in its time; the runner is dead."""

    def items_skipped(self, *, gone: int, expired: int) -> None:
        """Tell of items that are not computed: gone or failed callers', or past their deadline."""
