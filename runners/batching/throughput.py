"""The device's throughput over the latest batches."""

import math

# The weight of the newest batch.
_WEIGHT = 0.1


class Throughput:
    """Exponential means of a batch's duration, items and cost.

    It uses the quotient of these means, because batches differ in size: the mean of their quotients
    would be that of small batches.
    """

    def __init__(self) -> None:
        self._duration_s = self._items = self._cost = 0.0

    def add_batch(self, duration_s: float, items: int, cost: int) -> None:
        """Add a batch by its share of the device's time, as if one batch ran at a time."""
        weight = _WEIGHT if self._items else 1
        self._duration_s += weight * (duration_s - self._duration_s)
        self._items += weight * (items - self._items)
        self._cost += weight * (cost - self._cost)

    def duration_s(self, cost: float, unprepared_items: int) -> float:
        """Return the time for this cost, and for items whose cost is still unknown."""
        if not self._cost:
            return 0.0
        return (cost + self.expected_cost(unprepared_items)) * self._duration_s / self._cost

    def expected_cost(self, items: int) -> float:
        """Return the cost to expect of items; 0 before the first batch."""
        return items * self._cost / self._items if self._items else 0.0

    def cost_within(self, duration_s: float) -> float:
        """Return the cost that a duration suffices for; infinite before the first batch."""
        return duration_s * self._cost / self._duration_s if self._duration_s else math.inf
