"""Feedback: the labels of earlier predictions, and the quality that they show."""

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple


class Label(NamedTuple):
    """The right answer to the text ``item`` of a request."""

    request_id: str
    item: int
    label: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """An accuracy estimated without labels, over ``rows`` predictions, with its 95 % interval.

    ``error`` is the mean absolute error of such estimates, measured at validation on
    ``error_windows`` windows of ``error_rows`` rows; it differs for other window sizes.
    """

    accuracy: float
    low: float
    high: float
    rows: int
    error: float
    error_rows: int
    error_windows: int


@dataclass(frozen=True, slots=True)
class Measures:
    """The quality of ``labelled`` predictions; precision, recall and F1 are averaged over labels.

    ``first_at`` and ``last_at`` are when the first and the last of them were made.
    ``observed_error`` is the absolute error of an estimate for the same predictions, None without
    a calibration.
    """

    labelled: int
    first_at: datetime
    last_at: datetime
    accuracy: float
    precision: float
    recall: float
    f1: float
    observed_error: float | None = None


@dataclass(frozen=True, slots=True)
class VersionQuality:
    """The quality of a version in an arm.

    ``measures`` is None without labels, ``estimate`` without a calibration. ``report`` names the
    validation report that holds the calibration; ``reason`` says why there is no estimate.
    """

    model: str
    version: str
    arm: str
    measures: Measures | None
    estimate: Estimate | None
    report: str | None = None
    reason: str | None = None
