"""Compares a window with the baseline: which features differ, how surely, and the likely cause.

Two spans are compared: the window, and the window together with the one before it, because a small
change that lasts is significant only in the second. A feature counts only if its effect is large
enough, however small its p-value is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from monitors.drift.features import FEATURES, Feature
from monitors.drift.statistical_tests import FeatureDifference, classes_differ, numbers_differ
from monitors.drift.whylogs_profiles import Profile

# Features that moved within this factor of each other are ordered by their stage.
_SIMILAR_FACTOR = 1.5
_SIGNIFICANT = 0.05
_STAGES = {feature.name: feature.stage for feature in FEATURES}


@dataclass(frozen=True, slots=True)
class Finding:
    """The difference of one feature.

    ``p_value`` is corrected for the spans and for all features; ``windows`` is the number of
    windows in the span of the difference.
    """

    feature: str
    difference: FeatureDifference
    p_value: float
    windows: int

    def drifts(self, level: float, min_effect: float) -> bool:
        """Return whether the difference is significant at this level, and large enough."""
        return self.p_value <= level and self.difference.effect >= min_effect


def compare(baseline: Profile, windows: Sequence[Profile], min_effect: float) -> list[Finding]:
    """Return the finding of each feature, likely causes first; the newest window comes last."""
    spans = [windows[-1]]
    if len(windows) > 1:
        spans.append(windows[-2].merged(windows[-1]))
    findings = (_compare_feature(feature, baseline, spans, min_effect) for feature in FEATURES)
    return rank_causes(_correct_p_values([finding for finding in findings if finding is not None]))


def rank_causes(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings with likely causes first.

    The feature that moved most answers comes first. Of features that moved about as many, the
    earliest on the way from a text to its answer comes first, because it may cause the others.
    """
    remaining, ranking = list(findings), list[Finding]()
    while remaining:
        largest = max(map(_moved, remaining))
        similar = [finding for finding in remaining if _moved(finding) * _SIMILAR_FACTOR >= largest]
        first = min(similar, key=lambda finding: (_STAGES[finding.feature], -_moved(finding)))
        remaining.remove(first)
        ranking.append(first)
    return ranking


def _moved(finding: Finding) -> float:
    # A difference that chance may have made has moved nothing.
    return finding.difference.moved if finding.p_value <= _SIGNIFICANT else 0.0


def _compare_feature(
    feature: Feature, baseline: Profile, spans: Sequence[Profile], min_effect: float
) -> Finding | None:
    differ = classes_differ if feature.of_classes else numbers_differ
    findings = [
        # A difference that is too small only raises the p-values of others.
        Finding(
            feature.name,
            difference,
            difference.p_value if difference.effect >= min_effect else 1.0,
            windows,
        )
        for windows, span in enumerate(spans, 1)
        if (difference := differ(baseline, span, feature.name)) is not None
    ]
    if not findings:
        return None
    best = min(findings, key=lambda finding: finding.p_value)
    # Bonferroni's correction for the spans.
    return replace(best, p_value=min(1.0, len(findings) * best.p_value))


def _correct_p_values(findings: Sequence[Finding]) -> list[Finding]:
    """Correct p-values for the number of features (Benjamini and Yekutieli, 2001).

    The correction holds under any dependence between features.
    """
    count = len(findings)
    factor = count * sum(1 / rank for rank in range(1, count + 1))
    ordered = sorted(findings, key=lambda finding: finding.p_value)
    raised = [finding.p_value * factor / rank for rank, finding in enumerate(ordered, 1)]
    # From the largest down: a smaller p-value is never corrected to more than a larger one.
    corrected = np.minimum.accumulate([1.0, *raised[::-1]])[:0:-1]
    return [
        replace(finding, p_value=float(p_value))
        for finding, p_value in zip(ordered, corrected, strict=True)
    ]
