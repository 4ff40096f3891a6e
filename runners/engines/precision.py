"""Decides whether half precision may serve a network: only if it predicts the same."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runners.engines.base import softmax

# The largest change of a probability. Two labels that are closer than this may change places.
TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class Parity:
    """The changes by half precision over some texts: labels, and the largest of a probability."""

    texts: int
    changed_labels: int
    max_difference: float

    @property
    def holds(self) -> bool:
        """Whether half precision may serve; never if a probability is NaN."""
        return self.changed_labels == 0 and self.max_difference <= TOLERANCE


def parity(exact: NDArray[np.float32], half: NDArray[np.float32]) -> Parity:
    """Compare the logits of the same texts, both of shape (texts, labels)."""
    expected, halved = softmax(exact), softmax(half)
    ranked = np.sort(expected, axis=1)
    clear = ranked[:, -1] - ranked[:, -2] > TOLERANCE
    changed = expected.argmax(axis=1) != halved.argmax(axis=1)
    difference = np.nan_to_num(np.abs(halved - expected), nan=np.inf)
    return Parity(len(exact), int((changed & clear).sum()), float(difference.max()))
