"""The interface through which runners report to metrics."""

from typing import Protocol

from kaiten.serving import BatchStats


class Observer(Protocol):
    """Receives every event of a runner, on the event loop.

    Its methods return at once and do not raise. If one raises, the batcher dies, and with it the
    runner's readiness.
    """

    def queue_changed(self, items: int) -> None:
        """Report the number of items that wait for their preparation or for their batch."""

    def batch_computed(self, stats: BatchStats) -> None:
        """Report a computed batch."""

    def batch_failed(self) -> None:
        """Report a batch, or a part of one, that raised; the batcher bisects it."""

    def out_of_memory(self) -> None:
        """Report a batch that the device has no memory for; the batcher bisects it."""

    def device_hung(self) -> None:
        """Report work that exceeded its timeout; the runner is dead."""

    def items_skipped(self, *, gone: int, expired: int) -> None:
        """Report items that are not computed.

        The callers of ``gone`` have left or failed; ``expired`` items are past their deadline.
        """
