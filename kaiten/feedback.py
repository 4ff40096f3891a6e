"""How good a version's answers are: what labels come in for it, and what they say."""

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple


class Label(NamedTuple):
    """What the text ``item`` of a request should have been answered with."""

    request_id: str
    item: int
    label: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """An accuracy that was told without labels, over ``rows`` answers, with its 95 % interval.

    ``error`` is the mean absolute error of such estimates, as it was measured at validation on
    ``error_windows`` windows of ``error_rows`` answers; other windows have another.
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
    """What labels say of ``labelled`` answers; precision, recall and F1 are means over labels.

    ``first_at`` and ``last_at`` are when the first and the last of them were given;
    ``observed_error`` is how far an estimate for the same answers is from their accuracy, None
    where there is nothing to estimate by.
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
    """What is known of a version in an arm; None without labels, or without a calibration.

    ``reference`` names the validation report that has the calibration, ``reason`` why there is no
    estimate.
    """

    model: str
    version: str
    arm: str
    measures: Measures | None
    estimate: Estimate | None
    reference: str | None = None
    reason: str | None = None
