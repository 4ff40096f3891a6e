"""Selects the items of the next batch: similar lengths together, within limits."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The limits of a batch: items, padded tokens, and the share of those that is padding.

    A device that packs its items computes no padding, and gains nothing by equal lengths.
    """

    items: int
    tokens: int
    padding_ratio: float
    packed: bool = False


def choose_batch(costs: Sequence[int], due: Sequence[bool], limits: BatchLimits) -> list[int]:
    """Return the indices of the next batch, the oldest item's first.

    ``costs`` are the waiting items' lengths in tokens, oldest first. ``due`` items have been
    overtaken as often as they may be. The batch holds the oldest item, alone if it is over the
    limits; then due items, in order and with any padding; then the items nearest in length, or the
    oldest if items are packed. No item overtakes one that is older and due.
    """
    batch = _Batch(costs[0], limits)
    for index in range(1, len(costs)):
        if due[index] and not batch.add(index, costs[index], padding_ratio=1):
            return batch.indices
    others = [index for index in range(1, len(costs)) if not due[index]]
    if not limits.packed:
        shortest, longest = batch.shortest, batch.longest
        # The sort is stable: of equal lengths the oldest goes first.
        others.sort(key=lambda index: max(shortest - costs[index], costs[index] - longest, 0))
    for index in others:
        if len(batch.indices) >= limits.items:
            break
        batch.add(index, costs[index], limits.padding_ratio)
    return batch.indices


class _Batch:
    def __init__(self, cost: int, limits: BatchLimits) -> None:
        self.indices = [0]
        self.shortest = self.longest = self._tokens = cost
        self._limits = limits

    def add(self, index: int, cost: int, padding_ratio: float) -> bool:
        """Add an item, unless the batch would exceed its limits; return whether it is added."""
        size, longest = len(self.indices) + 1, max(self.longest, cost)
        tokens = self._tokens + cost
        padded = tokens if self._limits.packed else longest * size
        if (
            size > self._limits.items
            or padded > self._limits.tokens
            or padded - tokens > padding_ratio * padded
        ):
            return False
        self.indices.append(index)
        self._tokens, self.longest = tokens, longest
        self.shortest = min(self.shortest, cost)
        return True
