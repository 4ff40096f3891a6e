"""How far two samples differ, and how surely.

Numbers: the two-sample Kolmogorov-Smirnov test on the sketches' cumulative distributions, its
p-value by Stephens' approximation (Journal of the Royal Statistical Society B 32, 1970). Classes:
the chi-square test of two samples, and, since a test over all classes hardly sees one of many, an
exact binomial test of each; the population stability index without what chance alone gives it
(Yurdakul, "Statistical properties of population stability index", 2018) is told beside.

Rows are taken to be independent: one text that is asked over and over is many of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc, chdtrc, kolmogorov

from monitors.drift.whylogs_profiles import Profile

_RANKS = np.linspace(0, 1, 257)
# Below so many expected, the chi-square distribution is no good approximation (Cochran, 1954).
_LEAST_EXPECTED = 5
# Half a count more for each class, so that one that is new has a logarithm.
_SMOOTHING = 0.5
# A change of one class that chance would make in more than one of twenty windows is none.
_SURE = 0.05
Shares = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Difference:
    """Of one feature: an effect from 0 to 1, and the p-value under no difference at all.

    ``moved`` is at least the share of answers that would have to be others, which features can be
    ranked by: for numbers it is KS's D.
    """

    effect: float
    p_value: float
    moved: float
    details: Mapping[str, float | str] = field(default_factory=dict)


def numbers_differ(reference: Profile, current: Profile, column: str) -> Difference | None:
    """Compare two samples of numbers; None where one has none. The effect is KS's D."""
    sizes = reference.count(column), current.count(column)
    if not all(sizes):
        return None
    found = [each.quantiles(column, _RANKS.tolist()) for each in (reference, current)]
    points = np.unique(np.concatenate(found))
    # Under each point and up to it: a point may hold much of a sample.
    points = np.unique(np.concatenate([points, np.nextafter(points, np.inf)]))
    distances = np.abs(reference.below(column, points) - current.below(column, points))
    distance = float(distances.max())
    # Of as many as one sample would need.
    root = np.sqrt(sizes[0] * sizes[1] / sum(sizes))
    p_value = float(kolmogorov((root + 0.12 + 0.11 / root) * distance))
    medians = [float(each[len(_RANKS) // 2]) for each in found]
    return Difference(
        distance,
        p_value,
        distance,
        {"reference_median": medians[0], "median": medians[1], "ks": distance},
    )


def classes_differ(reference: Profile, current: Profile, column: str) -> Difference | None:
    """Compare two samples of classes; None where one has none.

    What moved is their total variation distance, less what chance gives it. The effect is that, or
    Cohen's h of the class that changed most surely, if that is sure at all and larger.
    """
    before, now = reference.classes(column), current.classes(column)
    if not before or not now:
        return None
    names = sorted({*before, *now})
    counts = np.array([[each.get(name, 0) for name in names] for each in (before, now)])
    whole = _chi_square(counts)
    p_values, effects = _each(counts)
    surest = int(np.lexsort((-np.abs(effects), p_values))[0])
    moved = _moved(counts)
    one = min(1.0, float(p_values[surest]) * len(names))
    height = abs(float(effects[surest])) if one <= _SURE else 0.0
    shares = counts[:, surest] / counts.sum(axis=1)
    # Either may tell: Bonferroni's correction for both, and within the second for all classes.
    return Difference(
        max(moved, min(1.0, height)),
        float(min(1.0, 2 * min(whole, one))),
        moved,
        {
            "psi": _stability(counts),
            "chi_square_p": whole,
            "class": names[surest],
            "reference_share": float(shares[0]),
            "share": float(shares[1]),
            "cohens_h": float(effects[surest]),
        },
    )


def _chi_square(counts: NDArray[np.int64]) -> float:
    """Return the p-value of two samples of classes, shape (2, classes)."""
    sizes = counts.sum(axis=1)
    expected = counts.sum(axis=0) * sizes.min() / sizes.sum()
    rare = expected < _LEAST_EXPECTED
    pooled = np.column_stack([counts[:, ~rare], counts[:, rare].sum(axis=1)])
    pooled = pooled[:, pooled.sum(axis=0) > 0]
    if pooled.shape[1] < 2:  # noqa: PLR2004  one class differs from nothing
        return 1.0
    scale = np.sqrt(sizes[1] / sizes[0])
    found = ((pooled[0] * scale - pooled[1] / scale) ** 2 / pooled.sum(axis=0)).sum()
    p_value: float = chdtrc(pooled.shape[1] - 1, found)
    return p_value


def _stability(counts: NDArray[np.int64]) -> float:
    """Return the population stability index over what it is expected to be without a change."""
    smooth = counts + _SMOOTHING
    before, now = smooth / smooth.sum(axis=1, keepdims=True)
    index = float(((now - before) * np.log(now / before)).sum())
    by_chance = (counts.shape[1] - 1) * float((1 / counts.sum(axis=1)).sum())
    return float(max(0.0, index - by_chance))


def _moved(counts: NDArray[np.int64]) -> float:
    """Return the total variation distance of two samples of classes over what chance gives it."""
    sizes = counts.sum(axis=1)
    before, now = counts / sizes[:, None]
    share = counts.sum(axis=0) / sizes.sum()
    # The mean of a normal's absolute value, of each class's difference.
    by_chance = np.sqrt(2 / np.pi * share * (1 - share) * (1 / sizes).sum()).sum() / 2
    return float(max(0.0, np.abs(now - before).sum() / 2 - by_chance))


def _each(counts: NDArray[np.int64]) -> tuple[Shares, Shares]:
    """Return the p-value and Cohen's h of each class.

    Given how often a class occurs in both samples, its part in the second is binomial.
    """
    sizes = counts.sum(axis=1)
    both, part = counts.sum(axis=0), sizes[1] / sizes.sum()
    at_most = bdtr(counts[1], both, part)
    # bdtrc is the chance of more than k.
    at_least = np.where(counts[1] > 0, bdtrc(np.maximum(counts[1] - 1, 0), both, part), 1.0)
    p_values: Shares = np.minimum(1.0, 2 * np.minimum(at_most, at_least))
    before, now = counts / sizes[:, None]
    effects: Shares = 2 * (np.arcsin(np.sqrt(now)) - np.arcsin(np.sqrt(before)))
    return p_values, effects
