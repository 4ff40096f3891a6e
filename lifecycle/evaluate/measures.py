"""Standard measures of classification quality, with their sources."""

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


class _MeasuresPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Averages(_MeasuresPart):
    """Precision, recall and F1, of one label or averaged over all of them."""

    precision: float
    recall: float
    f1: float


class ReliabilityBin(_MeasuresPart):
    """Rows of similar confidence: their number, mean confidence and accuracy."""

    rows: int
    confidence: float
    accuracy: float


class ClassificationMeasures(_MeasuresPart):
    """The measures of a version's predictions on some rows.

    ``confusion`` counts rows by the correct label (down) and the predicted one (across), both in
    the order of ``per_class``. ``calibration_error`` is the expected calibration error.
    """

    rows: int
    accuracy: float
    weighted: Averages
    macro: Averages
    per_class: dict[str, Averages]
    support: dict[str, int]
    confusion: list[list[int]]
    calibration_error: float
    reliability: list[ReliabilityBin]


class Comparison(_MeasuresPart):
    """A version compared with another version, the ``baseline``, on the same rows.

    ``difference`` is in accuracy, with its 95 % interval; ``p_value`` is that of McNemar's test:
    the probability that two equally accurate versions differ as much.
    """

    baseline: str
    difference: float
    low: float
    high: float
    only_candidate_correct: int
    only_baseline_correct: int
    p_value: float


def measure(
    correct_labels: Indices, scores: Scores, labels: Sequence[str]
) -> ClassificationMeasures:
    """Measure predictions: ``correct_labels`` has shape (rows,), ``scores`` (rows, labels).

    A label without rows counts in no average.
    """
    predicted = scores.argmax(axis=1)
    present = np.unique(correct_labels)
    by_label = precision_recall_fscore_support(
        correct_labels, predicted, labels=np.arange(len(labels)), zero_division=0.0
    )
    precision, recall, f1, support = (np.asarray(values, dtype=float) for values in by_label)
    columns = np.stack([precision, recall, f1], axis=1)
    bins = reliability_bins(scores.max(axis=1), predicted == correct_labels)
    confusion = confusion_matrix(correct_labels, predicted, labels=np.arange(len(labels)))
    return ClassificationMeasures(
        rows=len(correct_labels),
        accuracy=float((predicted == correct_labels).mean()),
        weighted=_averages(np.average(columns, axis=0, weights=support)),
        macro=_averages(columns[present].mean(axis=0)),
        per_class={label: _averages(columns[index]) for index, label in enumerate(labels)},
        support={label: int(support[index]) for index, label in enumerate(labels)},
        confusion=confusion.tolist(),
        calibration_error=expected_calibration_error(bins),
        reliability=bins,
    )


def reliability_bins(confidence: Scores, is_correct: NDArray[np.bool_]) -> list[ReliabilityBin]:
    """Return the bins of equal width that hold any rows, the least confident first."""
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    members = [bins == number for number in range(_BINS)]
    return [
        ReliabilityBin(
            rows=int(member.sum()),
            confidence=float(confidence[member].mean()),
            accuracy=float(is_correct[member].mean()),
        )
        for member in members
        if member.any()
    ]


def expected_calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Return the mean distance of confidence and accuracy, weighted by rows.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    rows = sum(group.rows for group in bins)
    return sum(group.rows * abs(group.confidence - group.accuracy) for group in bins) / rows


def compare_versions(
    candidate: NDArray[np.bool_], baseline: NDArray[np.bool_], baseline_tag: str
) -> Comparison:
    """Compare which of the same rows two versions predict correctly, both of shape (rows,).

    The interval is the percentile interval of the paired bootstrap (Efron and Tibshirani, An
    Introduction to the Bootstrap, 1993); the test is McNemar's exact test (1947).
    """
    rows = len(candidate)
    better, worse = int((candidate & ~baseline).sum()), int((baseline & ~candidate).sum())
    # A resample of rows is a draw of how many rows each version alone predicts correctly.
    shares = np.array([better, worse, rows - better - worse]) / rows
    resamples = np.random.default_rng(_SEED).multinomial(rows, shares, size=_RESAMPLES)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile((resamples[:, 0] - resamples[:, 1]) / rows, [tail, 1 - tail])
    p_value = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    return Comparison(
        baseline=baseline_tag,
        difference=(better - worse) / rows,
        low=float(low),
        high=float(high),
        only_candidate_correct=better,
        only_baseline_correct=worse,
        p_value=float(p_value),
    )


def accuracy_by_slice(
    is_correct: NDArray[np.bool_], slices: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, tuple[int, float]]]:
    """Return, by column and value, the number of rows and the accuracy on them."""
    accuracy: dict[str, dict[str, tuple[int, float]]] = {}
    for column, values in slices.items():
        array = np.asarray(values)
        members = {value: array == value for value in sorted(set(values))}
        accuracy[column] = {
            value: (int(member.sum()), float(is_correct[member].mean()))
            for value, member in members.items()
        }
    return accuracy


def _averages(columns: NDArray[np.float64]) -> Averages:
    precision, recall, f1 = (float(value) for value in columns)
    return Averages(precision=precision, recall=recall, f1=f1)
