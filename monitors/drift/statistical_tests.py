"""Statistical tests of two samples: the effect size of their difference, and its significance.

Numbers are compared by the two-sample Kolmogorov-Smirnov test on the sketches' cumulative
distributions; its p-value is Stephens' approximation (Journal of the Royal Statistical Society B
32, 1970). Classes are compared by the chi-square test of two samples, and each class by an exact
binomial test, because a test over all classes hardly detects a change of one of many. The details
hold the population stability index less its expectation under no change (Yurdakul, "Statistical
properties of population stability index", 2018).

Rows are assumed to be independent: a text that is sent many times counts as many rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc, chdtrc, kolmogorov

from monitors.drift.whylogs_profiles import Profile

_RANKS = np.linspace(0, 1, 257)
# The chi-square approximation needs so many expected counts (Cochran, 1954).
_MIN_EXPECTED = 5
# Added to each count, so that a new class has a logarithm.
_SMOOTHING = 0.5
# The significance level at which the change of one class counts.
_SIGNIFICANT = 0.05
Shares = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FeatureDifference:
    """The difference of one feature: an effect size from 0 to 1, and its p-value.

    ``moved`` is a lower bound of the share of answers that changed; features are ranked by it. For
    numbers it is the Kolmogorov-Smirnov statistic D.
    """

    effect: float
    p_value: float
    moved: float
    details: Mapping[str, float | str] = field(default_factory=dict)


def numbers_differ(baseline: Profile, current: Profile, column: str) -> FeatureDifference | None:
    """Compare two samples of numbers; None if one is empty. The effect is D."""
    sizes = baseline.count(column), current.count(column)
    if not all(sizes):
        return None
    quantiles = [profile.quantiles(column, _RANKS.tolist()) for profile in (baseline, current)]
    points = np.unique(np.concatenate(quantiles))
    # Below each point and up to it: a large part of a sample may equal the point.
    points = np.unique(np.concatenate([points, np.nextafter(points, np.inf)]))
    distances = np.abs(baseline.below(column, points) - current.below(column, points))
    distance = float(distances.max())
    # The root of the effective sample size.
    root = np.sqrt(sizes[0] * sizes[1] / sum(sizes))
    p_value = float(kolmogorov((root + 0.12 + 0.11 / root) * distance))
    medians = [float(numbers[len(_RANKS) // 2]) for numbers in quantiles]
    return FeatureDifference(
        distance,
        p_value,
        distance,
        {"baseline_median": medians[0], "median": medians[1], "ks": distance},
    )


def classes_differ(baseline: Profile, current: Profile, column: str) -> FeatureDifference | None:
    """Compare two samples of classes; None if one is empty.

    ``moved`` is their total variation distance less its expectation under no change. The effect is
    that, or Cohen's h of the class with the most significant change, if it is larger.
    """
    before, now = baseline.classes(column), current.classes(column)
    if not before or not now:
        return None
    names = sorted({*before, *now})
    counts = np.array([[sample.get(name, 0) for name in names] for sample in (before, now)])
    overall_p_value = _chi_square(counts)
    p_values, effects = _compare_classes(counts)
    first = int(np.lexsort((-np.abs(effects), p_values))[0])
    moved = _moved(counts)
    class_p_value = min(1.0, float(p_values[first]) * len(names))
    cohens_h = abs(float(effects[first])) if class_p_value <= _SIGNIFICANT else 0.0
    shares = counts[:, first] / counts.sum(axis=1)
    # Bonferroni's correction for the two tests; class_p_value is corrected for all classes.
    return FeatureDifference(
        max(moved, min(1.0, cohens_h)),
        float(min(1.0, 2 * min(overall_p_value, class_p_value))),
        moved,
        {
            "psi": _stability(counts),
            "chi_square_p": overall_p_value,
            "class": names[first],
            "baseline_share": float(shares[0]),
            "share": float(shares[1]),
            "cohens_h": float(effects[first]),
        },
    )


def _chi_square(counts: NDArray[np.int64]) -> float:
    """Return the p-value of two samples of classes, shape (2, classes)."""
    sizes = counts.sum(axis=1)
    expected = counts.sum(axis=0) * sizes.min() / sizes.sum()
    rare = expected < _MIN_EXPECTED
    pooled = np.column_stack([counts[:, ~rare], counts[:, rare].sum(axis=1)])
    pooled = pooled[:, pooled.sum(axis=0) > 0]
    if pooled.shape[1] < 2:  # noqa: PLR2004  one class cannot differ
        return 1.0
    scale = np.sqrt(sizes[1] / sizes[0])
    statistic = ((pooled[0] * scale - pooled[1] / scale) ** 2 / pooled.sum(axis=0)).sum()
    p_value: float = chdtrc(pooled.shape[1] - 1, statistic)
    return p_value


def _stability(counts: NDArray[np.int64]) -> float:
    """Return the population stability index less its expectation under no change."""
    smooth = counts + _SMOOTHING
    before, now = smooth / smooth.sum(axis=1, keepdims=True)
    index = float(((now - before) * np.log(now / before)).sum())
    expectation = (counts.shape[1] - 1) * float((1 / counts.sum(axis=1)).sum())
    return float(max(0.0, index - expectation))


def _moved(counts: NDArray[np.int64]) -> float:
    """Return the total variation distance less its expectation under no change."""
    sizes = counts.sum(axis=1)
    before, now = counts / sizes[:, None]
    share = counts.sum(axis=0) / sizes.sum()
    # The mean absolute value of a normal distribution, for the difference of each class.
    expectation = np.sqrt(2 / np.pi * share * (1 - share) * (1 / sizes).sum()).sum() / 2
    return float(max(0.0, np.abs(now - before).sum() / 2 - expectation))


def _compare_classes(counts: NDArray[np.int64]) -> tuple[Shares, Shares]:
    """Return the p-value and Cohen's h of each class.

    Given a class's count in both samples together, its count in the second is binomial.
    """
    sizes = counts.sum(axis=1)
    totals, part = counts.sum(axis=0), sizes[1] / sizes.sum()
    at_most = bdtr(counts[1], totals, part)
    # bdtrc is the probability of more than k.
    at_least = np.where(counts[1] > 0, bdtrc(np.maximum(counts[1] - 1, 0), totals, part), 1.0)
    p_values: Shares = np.minimum(1.0, 2 * np.minimum(at_most, at_least))
    before, now = counts / sizes[:, None]
    effects: Shares = 2 * (np.arcsin(np.sqrt(now)) - np.arcsin(np.sqrt(before)))
    return p_values, effects
