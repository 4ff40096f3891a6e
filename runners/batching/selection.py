"""Which of the waiting items share the next batch: the batcher's policy, without its machinery."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a batch may be: items, tokens with padding, and the share of them that is padding.

    A device that packs its items computes no padding, and gains nothing by equal lengths.
    """

    items: int
    tokens: int
    padding: float
    packed: bool = False


def choose(costs: Sequence[int], due: Sequence[bool], bounds: Bounds) -> list[int]:
    """Return the indices of the next batch, the oldest item's first.

    ``costs`` are the waiting items' lengths in tokens, oldest first; ``due`` tells who has been
    overtaken often enough. The oldest always goes, alone if it is over the budget. Then go those
    who are due, in order and whatever padding that costs, and then the items nearest in length;
    where items are packed, the oldest.
    No item goes before one that is older and due.
    """
    batch = _Batch(costs[0], bounds)
    for index in range(1, len(costs)):
        if due[index] and not batch.take(index, costs[index], padding=1):
            return batch.indices
    others = [index for index in range(1, len(costs)) if not due[index]]
    if not bounds.packed:
        shortest, longest = batch.shortest, batch.longest
        # The sort is stable: of equal lengths the oldest goes first.
        others.sort(key=lambda index: max(shortest - costs[index], costs[index] - longest, 0))
    for index in others:
        if len(batch.indices) >= bounds.items:
            break
        batch.take(index, costs[index], bounds.padding)
    return batch.indices


class _Batch:
    def __init__(self, cost: int, bounds: Bounds) -> None:
        self.indices = [0]
        self.shortest = self.longest = self._tokens = cost
        self._bounds = bounds

    def take(self, index: int, cost: int, padding: float) -> bool:
        """Take an item, if the batch with it keeps to the bounds."""
        size, longest = len(self.indices) + 1, max(self.longest, cost)
        tokens = self._tokens + cost
        padded = tokens if self._bounds.packed else longest * size
        if (
            size > self._bounds.items
            or padded > self._bounds.tokens
            or padded - tokens > padding * padded
        ):
            return False
        self.indices.append(index)
        self._tokens, self.longest = tokens, longest
        self.shortest = min(self.shortest, cost)
        return True
