"""One window against the reference: what differs, how surely, and what is its likely cause.

Two spans are looked at, the window and it with the one before: a small change that lasts is sure
only in the second. A feature counts where its effect is large enough, whatever its p-value.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from monitors.drift.features import FEATURES, Feature
from monitors.drift.statistical_tests import Difference, classes_differ, numbers_differ
from monitors.drift.whylogs_profiles import Profile

# What moved by less than this factor more or less tells no order of causes.
_ALIKE = 1.5
_SURE = 0.05
_STAGES = {feature.name: feature.stage for feature in FEATURES}


@dataclass(frozen=True, slots=True)
class Finding:
    """Of one feature. ``p_value`` is corrected for the spans and for all features together.

    ``windows`` is the number of them that its figures are of.
    """

    feature: str
    difference: Difference
    p_value: float
    windows: int

    def drifts(self, level: float, min_effect: float) -> bool:
        """Whether it differs, so surely and so much."""
        return self.p_value <= level and self.difference.effect >= min_effect


def judge(reference: Profile, windows: Sequence[Profile], min_effect: float) -> list[Finding]:
    """Return what is found of each feature, likely causes first; the newest window comes last."""
    spans = [windows[-1]]
    if len(windows) > 1:
        spans.append(windows[-2].merged(windows[-1]))
    found = [_of(feature, reference, spans, min_effect) for feature in FEATURES]
    known = [each for each in found if each is not None]
    return ranked(_adjusted(known))


def ranked(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings with likely causes first.

    What moved most answers comes first; of what moved about as many, what comes first on the way
    from a text to its answer, as it may be the cause of the rest.
    """
    left, found = list(findings), list[Finding]()
    while left:
        most = max(map(_moved, left))
        alike = [each for each in left if _moved(each) * _ALIKE >= most]
        first = min(alike, key=lambda each: (_STAGES[each.feature], -_moved(each)))
        left.remove(first)
        found.append(first)
    return found


def _moved(finding: Finding) -> float:
    # What differs by too little, or may do so by chance, has moved nothing.
    return finding.difference.moved if finding.p_value <= _SURE else 0.0


def _of(
    feature: Feature, reference: Profile, spans: Sequence[Profile], min_effect: float
) -> Finding | None:
    differ = classes_differ if feature.of_classes else numbers_differ
    found = [
        Finding(feature.name, difference, difference.p_value, windows)
        for windows, span in enumerate(spans, 1)
        if (difference := differ(reference, span, feature.name)) is not None
    ]
    if not found:
        return None
    # Too little a difference is none, which only raises p-values.
    kept = [
        each if each.difference.effect >= min_effect else replace(each, p_value=1.0)
        for each in found
    ]
    best = min(kept, key=lambda each: each.p_value)
    return replace(best, p_value=min(1.0, len(kept) * best.p_value))


def _adjusted(findings: Sequence[Finding]) -> list[Finding]:
    """Correct p-values for the number of features (Benjamini and Yekutieli, 2001).

    That holds whatever the features have to do with each other, and they have.
    """
    count = len(findings)
    factor = count * sum(1 / rank for rank in range(1, count + 1))
    ordered = sorted(findings, key=lambda each: each.p_value)
    raised = [each.p_value * factor / rank for rank, each in enumerate(ordered, 1)]
    # From the largest down: no smaller p-value is adjusted to more than a larger one.
    adjusted = np.minimum.accumulate([1.0, *raised[::-1]])[:0:-1]
    return [
        replace(each, p_value=float(value)) for each, value in zip(ordered, adjusted, strict=True)
    ]
