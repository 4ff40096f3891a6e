"""Estimates accuracy without labels, by confidence-based performance estimation (CBPE).

A calibrated confidence is the probability of being right, so its mean over a window estimates the
window's accuracy, which has a Poisson-binomial distribution. NannyML named the method: Białek,
Kuberski, Perrakis, Bifet, "Estimating Model Performance Under Covariate Shift Without Labels"
(2024, arXiv:2401.08348); Kivimäki, Białek, Kuberski, Nurminen, "Performance Estimation in Binary
Classification Using Calibrated Confidence" (2025, arXiv:2505.05295). Confidences are calibrated by
isotonic regression: Zadrozny, Elkan, "Transforming Classifier Scores into Accurate Multiclass
Probability Estimates" (KDD 2002).

The estimate is valid under covariate shift: answers of a given confidence must be right as often as
at validation. Concept shift, where the meaning of inputs changes, shows in labels only.
"""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from kaiten.feedback import Estimate

FILE = "calibration.json"
# The half-width of a 95 % interval, in standard deviations.
_Z = 1.959964
_KNOTS = 32
_RESAMPLES = 200
_FOLDS = 5
_WINDOW_ROWS = 1000
_SEED = 20261128
_DIGITS = 8
Floats = NDArray[np.float64]


class Calibration(BaseModel):
    """Maps confidence to the share of right answers, fitted on the ``rows`` of a validation.

    The map interpolates linearly between the increasing points ``confidence`` and their shares
    ``accuracy``, all from 0 to 1. ``covariance``, knots by knots, is that of the shares at the
    ``knots`` over bootstrap resamples. ``error`` is the mean absolute error of the estimates for
    ``windows`` held-out windows of ``window_rows`` rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    confidence: list[float]
    accuracy: list[float]
    knots: list[float]
    covariance: list[list[float]]
    error: float
    windows: int
    window_rows: int

    @model_validator(mode="after")
    def _fits_together(self) -> "Calibration":
        knots = len(self.knots)
        if not (self.rows and self.confidence and knots):
            raise ValueError("holds no rows, no points or no knots")
        lengths = {len(self.accuracy) - len(self.confidence), len(self.covariance) - knots}
        if lengths != {0} or any(len(row) != knots for row in self.covariance):
            raise ValueError("has lists whose lengths do not fit together")
        return self

    def estimate(self, confidences: ArrayLike) -> Estimate:
        """Return the expected accuracy of answers with these confidences, of shape (n,), n > 0.

        The 95 % interval is for the accuracy that labels of these very answers would show: the
        normal approximation of the Poisson-binomial distribution, plus the calibration's own
        variance. The module's docstring says when the estimate is valid.
        """
        sure = np.asarray(confidences, np.float64)
        shares = np.interp(sure, self.confidence, self.accuracy)
        # n right rows of n show only that errors are rarer than about 1 in n.
        probabilities = np.clip(shares, 1 / (self.rows + 1), self.rows / (self.rows + 1))
        window_variance = float((probabilities * (1 - probabilities)).sum()) / len(sure) ** 2
        weights = self._weights(sure)
        calibration_variance = float(weights @ np.asarray(self.covariance) @ weights)
        accuracy = float(shares.mean())
        margin = _Z * (window_variance + calibration_variance) ** 0.5
        return Estimate(
            accuracy=accuracy,
            low=max(0.0, accuracy - margin),
            high=min(1.0, accuracy + margin),
            rows=len(sure),
            error=self.error,
            error_rows=self.window_rows,
            error_windows=self.windows,
        )

    def _weights(self, sure: Floats) -> Floats:
        """Return the weight of each knot in the mean of values interpolated between knots."""
        knots = np.asarray(self.knots)
        positions = np.interp(sure, knots, np.arange(len(knots)))
        below = positions.astype(np.int64)
        share = positions - below
        above = np.minimum(below + 1, len(knots) - 1)
        counted = np.bincount(below, 1 - share, len(knots)) + np.bincount(above, share, len(knots))
        return np.asarray(counted / len(sure), np.float64)


def read(folder: Path | None) -> Calibration | None:
    """Return the calibration in a report's folder, None if there is none or it is invalid."""
    if folder is None:
        return None
    try:
        return Calibration.model_validate_json((folder / FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def fit(confidences: ArrayLike, correct: ArrayLike) -> Calibration:
    """Fit a calibration to a validation's confidences and whether each answer was correct.

    Both have shape (n,). The result is deterministic. Needs scikit-learn, which `kaiten validate`
    requires and a server does not.
    """
    sure, right = np.asarray(confidences, np.float64), np.asarray(correct, np.float64)
    points, shares = _isotonic(sure, right)
    knots = np.unique(np.quantile(sure, np.linspace(0, 1, _KNOTS)).round(_DIGITS))
    errors, window_rows = _errors(sure, right)
    return Calibration(
        rows=len(sure),
        confidence=points.round(_DIGITS).tolist(),
        accuracy=shares.round(_DIGITS).tolist(),
        knots=knots.tolist(),
        covariance=_covariance(sure, right, knots).tolist(),
        error=float(np.mean(errors)),
        windows=len(errors),
        window_rows=window_rows,
    )


def _isotonic(sure: Floats, right: Floats) -> tuple[Floats, Floats]:
    # Not installed on servers.
    from sklearn.isotonic import IsotonicRegression  # noqa: PLC0415

    regression = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(sure, right)
    return regression.X_thresholds_, regression.y_thresholds_


def _covariance(sure: Floats, right: Floats, knots: Floats) -> Floats:
    """Return the covariance of the shares at the knots, by bootstrap over rows."""
    random = np.random.default_rng(_SEED)
    shares = np.empty((_RESAMPLES, len(knots)))
    for number in range(_RESAMPLES):
        drawn = random.integers(len(sure), size=len(sure))
        shares[number] = np.interp(knots, *_isotonic(sure[drawn], right[drawn]))
    return np.atleast_2d(np.cov(shares, rowvar=False))


def _errors(sure: Floats, right: Floats) -> tuple[list[float], int]:
    """Return the absolute errors on cross-validation windows, and the rows of each window."""
    order = np.random.default_rng(_SEED).permutation(len(sure))
    folds = np.array_split(order, min(_FOLDS, len(order)))
    window_rows = min(_WINDOW_ROWS, *map(len, folds))
    errors = []
    for fold in folds:
        others = np.setdiff1d(order, fold)
        calibrated = _isotonic(sure[others], right[others])
        for start in range(0, len(fold) - window_rows + 1, window_rows):
            window = fold[start : start + window_rows]
            estimate = np.interp(sure[window], *calibrated).mean()
            errors.append(abs(float(estimate - right[window].mean())))
    return errors, window_rows
