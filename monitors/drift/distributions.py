"""The distribution of a feature in a profile and in the baseline, over the same bins or classes."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from monitors.drift.features import Feature
from monitors.drift.whylogs_profiles import Profile

_BINS = 30
_MAX_CLASSES = 20
_EQUAL = 1e-4
# The outermost bins also hold the numbers beyond these ranks, so that outliers stretch no axis.
_RANKS = (0.005, *np.linspace(0.05, 0.95, 19).tolist(), 0.995)


class Distribution(BaseModel):
    """The shares of a feature's answers, which sum to one; None for a missing baseline.

    ``names`` are the classes, or the range of each bin; ``edges`` are those of the bins, one more
    than the shares, and None for classes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: tuple[str, ...]
    edges: tuple[float, ...] | None
    current: tuple[float, ...]
    baseline: tuple[float, ...] | None


def distribution(
    feature: Feature, current: Profile, baseline: Profile | None
) -> Distribution | None:
    """Return the distribution of a feature, None if no answer has it."""
    if not current.count(feature.name):
        return None
    profiles = [current]
    if baseline is not None and baseline.count(feature.name):
        profiles.append(baseline)
    return (_of_classes if feature.of_classes else _of_numbers)(feature.name, profiles)


def _of_numbers(column: str, profiles: Sequence[Profile]) -> Distribution:
    edges = _edges(np.concatenate([profile.quantiles(column, _RANKS) for profile in profiles]))
    current, baseline = _as_tuples([_shares(profile, column, edges) for profile in profiles])
    names = tuple(f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges))
    return Distribution(
        names=names, edges=tuple(edges.tolist()), current=current, baseline=baseline
    )


def _edges(quantiles: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = float(quantiles.min()), float(quantiles.max())
    if (quantiles == quantiles.round()).all():
        # Whole numbers: each bin holds equally many of them.
        step = max(1, int(np.ceil((high - low + 1) / _BINS)))
        return np.arange(low, high + step + 1, step) - 0.5
    largest = max(abs(low), abs(high))
    if high - low < _EQUAL * largest:
        # One number but for rounding.
        return np.array([low - largest / 2, high + largest / 2])
    return np.linspace(low, high, _BINS + 1)


def _shares(profile: Profile, column: str, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    below = profile.below(column, edges[1:-1]) if len(edges) > 2 else np.array([])  # noqa: PLR2004
    return np.diff([0.0, *below, 1.0])


def _of_classes(column: str, profiles: Sequence[Profile]) -> Distribution:
    shares_by_class = [_class_shares(profile.classes(column)) for profile in profiles]
    largest = {
        name: max(shares.get(name, 0) for shares in shares_by_class)
        for name in sorted({*shares_by_class[0], *shares_by_class[-1]})
    }
    names = sorted(largest, key=lambda name: -largest[name])[:_MAX_CLASSES]
    rows = [np.array([shares.get(name, 0) for name in names]) for shares in shares_by_class]
    if len(names) < len(largest):
        names.append("all others")
        rows = [np.append(row, max(0.0, 1 - row.sum())) for row in rows]
    current, baseline = _as_tuples(rows)
    return Distribution(names=tuple(names), edges=None, current=current, baseline=baseline)


def _class_shares(counts: Mapping[str, int]) -> Mapping[str, float]:
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items()}


def _as_tuples(
    shares: Sequence[NDArray[np.float64]],
) -> tuple[tuple[float, ...], tuple[float, ...] | None]:
    """Return the shares of the profile and of the baseline, None without one."""
    current, *baseline = (tuple(row.tolist()) for row in shares)
    return current, baseline[0] if baseline else None
