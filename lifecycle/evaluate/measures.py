"""How good answers are: the field's measures, with their sources."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import stats
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

_BINS = 15
_RESAMPLES = 10_000
_CONFIDENCE = 0.95
_SEED = 20261125
Indices = NDArray[np.int64]
Scores = NDArray[np.float32]


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Averages(_Figures):
    """Precision, recall and F1, of one label or averaged over all of them."""

    precision: float
    recall: float
    f1: float


class Bin(_Figures):
    """Rows of like confidence: how many, and how sure and how right the answers are on average."""

    rows: int
    confidence: float
    accuracy: float


class Measures(_Figures):
    """What the answers on some rows come to.

    ``confusion`` counts rows by the right label (down) and the answered one (across), both in the
    order of ``per_class``. ``calibration_error`` is the expected calibration error.
    """

    rows: int
    accuracy: float
    weighted: Averages
    macro: Averages
    per_class: dict[str, Averages]
    support: dict[str, int]
    confusion: list[list[int]]
    calibration_error: float
    reliability: list[Bin]


class Comparison(_Figures):
    """One version against another on the same rows.

    ``difference`` is in accuracy, with its 95 % interval; ``p_value`` is McNemar's, of the chance
    that two equally good versions differ as much.
    """

    against: str
    difference: float
    low: float
    high: float
    only_this_right: int
    only_other_right: int
    p_value: float


def measure(right: Indices, scores: Scores, labels: Sequence[str]) -> Measures:
    """Measure answers: ``right`` of shape (rows,), ``scores`` of shape (rows, labels).

    A label without rows counts in no average.
    """
    answered = scores.argmax(axis=1)
    present = np.unique(right)
    of_each = precision_recall_fscore_support(
        right, answered, labels=np.arange(len(labels)), zero_division=0.0
    )
    precision, recall, f1, support = (np.asarray(each, dtype=float) for each in of_each)
    columns = np.stack([precision, recall, f1], axis=1)
    bins = reliability(scores.max(axis=1), answered == right)
    return Measures(
        rows=len(right),
        accuracy=float((answered == right).mean()),
        weighted=_averages(np.average(columns, axis=0, weights=support)),
        macro=_averages(columns[present].mean(axis=0)),
        per_class={label: _averages(columns[index]) for index, label in enumerate(labels)},
        support={label: int(support[index]) for index, label in enumerate(labels)},
        confusion=confusion_matrix(right, answered, labels=np.arange(len(labels))).tolist(),
        calibration_error=calibration_error(bins),
        reliability=bins,
    )


def reliability(confidence: Scores, correct: NDArray[np.bool_]) -> list[Bin]:
    """Return the bins of equal width that hold any rows, the least confident first."""
    number = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    members = [number == each for each in range(_BINS)]
    return [
        Bin(
            rows=int(member.sum()),
            confidence=float(confidence[member].mean()),
            accuracy=float(correct[member].mean()),
        )
        for member in members
        if member.any()
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error.

    That is the mean distance of confidence and accuracy (Guo et al., On Calibration of Modern
    Neural Networks, 2017).
    """
    rows = sum(each.rows for each in bins)
    return sum(each.rows * abs(each.confidence - each.accuracy) for each in bins) / rows


def compare(this: NDArray[np.bool_], other: NDArray[np.bool_], against: str) -> Comparison:
    """Compare which of the same rows two versions have right, both of shape (rows,).

    The interval is the percentile one of the paired bootstrap (Efron and Tibshirani, An
    Introduction to the Bootstrap, 1993); the test is McNemar's (1947), exact.
    """
    rows = len(this)
    better, worse = int((this & ~other).sum()), int((other & ~this).sum())
    # Resampling rows draws how many of the resample each version alone has right.
    shares = np.array([better, worse, rows - better - worse]) / rows
    drawn = np.random.default_rng(_SEED).multinomial(rows, shares, size=_RESAMPLES)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / rows, [tail, 1 - tail])
    p_value = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    return Comparison(
        against=against,
        difference=(better - worse) / rows,
        low=float(low),
        high=float(high),
        only_this_right=better,
        only_other_right=worse,
        p_value=float(p_value),
    )


def by_slice(
    correct: NDArray[np.bool_], slices: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, tuple[int, float]]]:
    """Return, by column and value, how many rows there are and the accuracy on them."""
    found: dict[str, dict[str, tuple[int, float]]] = {}
    for column, values in slices.items():
        array = np.asarray(values)
        members = {value: array == value for value in sorted(set(values))}
        found[column] = {
            value: (int(member.sum()), float(correct[member].mean()))
            for value, member in members.items()
        }
    return found


def _averages(columns: NDArray[np.float64]) -> Averages:
    precision, recall, f1 = (float(each) for each in columns)
    return Averages(precision=precision, recall=recall, f1=f1)
