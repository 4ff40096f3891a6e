"""How fast a device has been lately."""

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
        return (cost + unknown * self._cost / self._items) * self._seconds / self._cost
