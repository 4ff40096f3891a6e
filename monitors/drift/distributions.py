"""How a feature is distributed in a profile and in the reference, by the same bins or classes."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from monitors.drift.features import Feature
from monitors.drift.whylogs_profiles import Profile

_BINS = 30
_MOST_CLASSES = 20
_ALIKE = 1e-4
# The outermost bins hold what is beyond these ranks too, so that no outlier squeezes all others.
_RANKS = (0.005, *np.linspace(0.05, 0.95, 19).tolist(), 0.995)


class Distribution(BaseModel):
    """Shares of a feature's answers, which sum to one; those of the reference None without one.

    ``names`` are the classes, or of each bin where it begins and ends; ``edges`` are the bins', one
    more than there are shares, and None for classes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: tuple[str, ...]
    edges: tuple[float, ...] | None
    current: tuple[float, ...]
    reference: tuple[float, ...] | None


def distribution(
    feature: Feature, current: Profile, reference: Profile | None
) -> Distribution | None:
    """Return how a feature is distributed; None where no answer has it."""
    known = [each for each in (current, reference) if each is not None and each.count(feature.name)]
    if not current.count(feature.name):
        return None
    return (_classes if feature.of_classes else _numbers)(feature.name, known)


def _numbers(column: str, known: Sequence[Profile]) -> Distribution:
    edges = _edges(np.concatenate([each.quantiles(column, _RANKS) for each in known]))
    current, reference = _both([_shares(each, column, edges) for each in known])
    names = tuple(f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges))
    return Distribution(
        names=names, edges=tuple(edges.tolist()), current=current, reference=reference
    )


def _edges(quantiles: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = float(quantiles.min()), float(quantiles.max())
    if (quantiles == quantiles.round()).all():
        # Whole numbers, each of which is in one bin, and as many in each.
        step = max(1, int(np.ceil((high - low + 1) / _BINS)))
        return np.arange(low, high + step + 1, step) - 0.5
    largest = max(abs(low), abs(high))
    if high - low < _ALIKE * largest:
        # As good as one number, which bins would only tell from its rounding.
        return np.array([low - largest / 2, high + largest / 2])
    return np.linspace(low, high, _BINS + 1)


def _shares(profile: Profile, column: str, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    below = profile.below(column, edges[1:-1]) if len(edges) > 2 else np.array([])  # noqa: PLR2004
    return np.diff([0.0, *below, 1.0])


def _classes(column: str, known: Sequence[Profile]) -> Distribution:
    counts = [each.classes(column) for each in known]
    totals = [sum(each.values()) for each in counts]
    most = {
        name: max(each.get(name, 0) / total for each, total in zip(counts, totals, strict=True))
        for name in sorted({*counts[0], *counts[-1]})
    }
    shown = sorted(most, key=lambda name: -most[name])[:_MOST_CLASSES]
    shares = [
        np.array([each.get(name, 0) / total for name in shown])
        for each, total in zip(counts, totals, strict=True)
    ]
    if len(shown) < len(most):
        shown.append("all others")
        shares = [np.append(each, max(0.0, 1 - each.sum())) for each in shares]
    current, reference = _both(shares)
    return Distribution(names=tuple(shown), edges=None, current=current, reference=reference)


def _both(
    shares: Sequence[NDArray[np.float64]],
) -> tuple[tuple[float, ...], tuple[float, ...] | None]:
    found = [tuple(each.tolist()) for each in shares]
    return found[0], found[1] if len(found) > 1 else None
