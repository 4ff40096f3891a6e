"""Accuracy, and macro-averaged precision, recall and F1."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Scores:
    """Accuracy and macro averages, each from 0 to 1."""

    accuracy: float
    precision: float
    recall: float
    f1: float


def scores(predicted: Sequence[str], truth: Sequence[str]) -> Scores:
    """Return the scores of predicted against true labels, at least one of each.

    They equal scikit-learn's with average="macro" and zero_division=0, over the labels that occur
    on either side. Importing scikit-learn would take 100 MiB.
    """
    labels, codes = np.unique([*predicted, *truth], return_inverse=True)
    predicted_codes, true_codes = codes[: len(predicted)], codes[len(predicted) :]
    hits = _counts(predicted_codes[predicted_codes == true_codes], len(labels))
    precision = _share(hits, _counts(predicted_codes, len(labels)))
    recall = _share(hits, _counts(true_codes, len(labels)))
    f1 = _share(2 * precision * recall, precision + recall)
    return Scores(
        accuracy=float(np.mean(predicted_codes == true_codes)),
        precision=float(precision.mean()),
        recall=float(recall.mean()),
        f1=float(f1.mean()),
    )


def _counts(codes: NDArray[np.int64], labels: int) -> NDArray[np.float64]:
    return np.bincount(codes, minlength=labels).astype(np.float64)


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
