"""Which lines of a flood are logged."""


class Sample:
    """Takes the first few of each second, and counts the others."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._second = self._taken = self._left_out = 0

    def takes(self, now: float) -> bool:
        """Tell whether one more is logged at this second."""
        # Not only a later one: a clock may be set back.
        if int(now) != self._second:
            self._second, self._taken = int(now), 0
        if self._taken >= self._per_second:
            self._left_out += 1
            return False
        self._taken += 1
        return True

    def tell_left_out(self) -> int:
        """Return how many were left out since this was last asked."""
        left_out, self._left_out = self._left_out, 0
        return left_out
