"""How fast a device has been lately."""

import math

# What the newest batch weighs.
_WEIGHT = 0.1


class Pace:
    """Means over the latest batches: seconds, items and their cost.

    A quotient of means, as batches differ in size: the mean of their quotients would be that of the
    small ones.
    """

    def __init__(self) -> None:
        self._seconds = self._items = self._cost = 0.0

    def note(self, seconds: float, items: int, cost: int) -> None:
        """Note what a batch took of the device's time, as if it computed one at a time."""
        weight = _WEIGHT if self._items else 1
        self._seconds += weight * (seconds - self._seconds)
        self._items += weight * (items - self._items)
        self._cost += weight * (cost - self._cost)

    def seconds(self, cost: float, unknown: int) -> float:
        """Return what it takes for so much cost, and for items whose cost is not known yet."""
        if not self._cost:
            return 0.0
        return (cost + self.cost(unknown)) * self._seconds / self._cost

    def cost(self, items: int) -> float:
        """Return what so many items cost that are not known yet; 0 before the first batch."""
        return items * self._cost / self._items if self._items else 0.0

    def within(self, seconds: float) -> float:
        """Return the cost that so many seconds are enough for; without limit if not known."""
        return seconds * self._cost / self._seconds if self._seconds else math.inf
