"""Accuracy without labels, from how sure the answers are: CBPE.

Confidence-based performance estimation, as NannyML named it: where a confidence is calibrated, it
is the chance of being right, and the mean over a window estimates its accuracy; the accuracy itself
is then Poisson-binomial. Białek, Kuberski, Perrakis, Bifet, "Estimating Model Performance Under
Covariate Shift Without Labels" (2024, arXiv:2401.08348); Kivimäki, Białek, Kuberski, Nurminen,
"Performance Estimation in Binary Classification Using Calibrated Confidence" (2025,
arXiv:2505.05295). Calibrated by isotonic regression: Zadrozny, Elkan, "Transforming Classifier
Scores into Accurate Multiclass Probability Estimates" (KDD 2002).

It holds while an answer of some confidence is right as often as it was at validation, whatever
inputs come. Where the same inputs come to mean something else (concept shift), it sees nothing:
only labels do.
"""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from kaiten.quality import Estimate

FILE = "calibration.json"
# Of a 95 % interval, in standard deviations.
_Z = 1.959964
_KNOTS = 32
_RESAMPLES = 200
_FOLDS = 5
_WINDOW_ROWS = 1000
_SEED = 20261128
_DIGITS = 8
Floats = NDArray[np.float64]


class Calibration(BaseModel):
    """How often an answer of some confidence is right, by the rows of a validation.

    Between the points ``confidence``, which rise, the shares ``accuracy`` are interpolated.
    ``covariance`` is that of the shares at the ``knots`` over resamples of the rows: how much of
    them is chance. ``error`` is the mean absolute error of estimates for
    ``windows`` windows of ``window_rows`` rows that the calibration had not seen.
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
        """Return the accuracy to expect of at least one answer with these confidences.

        The interval is for the accuracy that labels for these very answers would show, in 95 of 100
        cases: the normal approximation of the Poisson-binomial, with the calibration's own
        uncertainty added. It fails where the module says that the estimate does.
        """
        sure = np.asarray(confidences, np.float64)
        right = np.interp(sure, self.confidence, self.accuracy)
        # Rows that were all right show no more than that mistakes are rarer than one of them.
        chance = np.clip(right, 1 / (self.rows + 1), self.rows / (self.rows + 1))
        of_window = float((chance * (1 - chance)).sum()) / len(sure) ** 2
        weights = self._weights(sure)
        of_calibration = float(weights @ np.asarray(self.covariance) @ weights)
        accuracy, margin = float(right.mean()), _Z * (of_window + of_calibration) ** 0.5
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
        """Return how much each knot counts in the mean of what is interpolated between them."""
        knots = np.asarray(self.knots)
        places = np.interp(sure, knots, np.arange(len(knots)))
        below = places.astype(np.int64)
        share = places - below
        above = np.minimum(below + 1, len(knots) - 1)
        counted = np.bincount(below, 1 - share, len(knots)) + np.bincount(above, share, len(knots))
        return np.asarray(counted / len(sure), np.float64)


def read(folder: Path | None) -> Calibration | None:
    """Return the calibration in a report's folder; None where there is none that can be read."""
    if folder is None:
        return None
    try:
        return Calibration.model_validate_json((folder / FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def fit(confidences: ArrayLike, correct: ArrayLike) -> Calibration:
    """Calibrate on the rows of a validation: how sure each answer was, and whether it was right.

    Deterministic. It takes what `kaiten validate` is installed with.
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
    # No server has it.
    from sklearn.isotonic import IsotonicRegression  # noqa: PLC0415

    found = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(sure, right)
    return found.X_thresholds_, found.y_thresholds_


def _covariance(sure: Floats, right: Floats, knots: Floats) -> Floats:
    """Return that of the shares at the knots, by the bootstrap over rows."""
    random = np.random.default_rng(_SEED)
    shares = np.empty((_RESAMPLES, len(knots)))
    for number in range(_RESAMPLES):
        drawn = random.integers(len(sure), size=len(sure))
        shares[number] = np.interp(knots, *_isotonic(sure[drawn], right[drawn]))
    return np.atleast_2d(np.cov(shares, rowvar=False))


def _errors(sure: Floats, right: Floats) -> tuple[list[float], int]:
    """Return how far off estimates are on windows that their calibration has not seen."""
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
