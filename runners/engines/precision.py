"""Whether a network may be computed in half precision: only if it answers the same."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runners.engines.base import softmax

# The most that a probability may change. Two labels that are closer than this may change places.
TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class Parity:
    """What half precision changes over some texts: labels, and a probability at the most."""

    texts: int
    changed_labels: int
    max_difference: float

    @property
    def holds(self) -> bool:
        """Whether it may be served; what is no number never is."""
        return self.changed_labels == 0 and self.max_difference <= TOLERANCE


def parity(exact: NDArray[np.float32], half: NDArray[np.float32]) -> Parity:
    """Compare the logits of the same texts, both of shape (texts, labels)."""
    expected, found = softmax(exact), softmax(half)
    ranked = np.sort(expected, axis=1)
    clear = ranked[:, -1] - ranked[:, -2] > TOLERANCE
    changed = expected.argmax(axis=1) != found.argmax(axis=1)
    difference = np.nan_to_num(np.abs(found - expected), nan=np.inf)
    return Parity(len(exact), int((changed & clear).sum()), float(difference.max()))
