import numpy as np
import pytest

from monitors.drift.comparison import Finding, compare, rank_causes
from monitors.drift.statistical_tests import FeatureDifference
from monitors.drift.whylogs_profiles import Profile
from tests.unit.monitors.drift.profiles import answers, usual

RANDOM = np.random.default_rng(20261128)
REFERENCE = usual(RANDOM, 3000)
ROWS = 1000


def make_finding(feature: str, effect: float, p_value: float = 1e-9) -> Finding:
    return Finding(feature, FeatureDifference(effect, p_value, effect), p_value, 1)


def ranked_features(*findings: Finding) -> list[str]:
    return [cause.feature for cause in rank_causes(findings)]


def test_usual_answers_show_nothing() -> None:
    for _ in range(20):
        findings = compare(REFERENCE, [usual(RANDOM), usual(RANDOM)], min_effect=0.1)
        assert {finding.feature for finding in findings} == set(answers(RANDOM, 1))
        assert not any(finding.drifts(0.01, 0.1) for finding in findings)


def test_what_has_changed_comes_first() -> None:
    changed = answers(RANDOM, ROWS, confidence=RANDOM.beta(2, 1, ROWS))
    first, *rest = compare(REFERENCE, [Profile.of(changed)], min_effect=0.1)
    assert first.feature == "confidence"
    assert first.drifts(1e-6, 0.1)
    assert not any(finding.drifts(0.01, 0.1) for finding in rest)


def test_a_small_change_that_lasts_is_sure_over_two_windows() -> None:
    windows = [
        Profile.of(answers(RANDOM, ROWS, distance=RANDOM.normal(0.64, 0.1, ROWS))) for _ in range(2)
    ]
    one_window = compare(REFERENCE, windows[1:], min_effect=0.1)[0]
    two_windows = compare(REFERENCE, windows, min_effect=0.1)[0]
    assert (one_window.feature, two_windows.feature) == ("distance", "distance")
    assert two_windows.windows == 2
    assert two_windows.p_value < one_window.p_value / 100


def test_a_change_of_the_newest_window_counts_though_the_one_before_was_usual() -> None:
    changed = Profile.of(answers(RANDOM, ROWS, distance=RANDOM.normal(0.75, 0.1, ROWS)))
    first = compare(REFERENCE, [usual(RANDOM), changed], min_effect=0.1)[0]
    assert (first.feature, first.windows) == ("distance", 1)
    assert first.drifts(1e-9, 0.1)


def test_a_difference_that_is_sure_but_small_is_none() -> None:
    large = Profile.of(answers(RANDOM, 50_000, distance=RANDOM.normal(0.61, 0.1, 50_000)))
    baseline = usual(RANDOM, 50_000)
    assert compare(baseline, [large], min_effect=0.01)[0].drifts(1e-6, 0.01)
    assert compare(baseline, [large], min_effect=0.1)[0].p_value == 1


def test_a_feature_that_only_one_has_is_left_out() -> None:
    columns = {name: values for name, values in answers(RANDOM, ROWS).items() if name != "distance"}
    features = {
        finding.feature for finding in compare(REFERENCE, [Profile.of(columns)], min_effect=0.1)
    }
    assert features == columns.keys()


def test_p_values_are_adjusted_for_all_features() -> None:
    changed = answers(RANDOM, ROWS, distance=RANDOM.normal(0.66, 0.1, ROWS))
    first = compare(REFERENCE, [Profile.of(changed)], min_effect=0.1)[0]
    # The smallest of nine: 9 * (1 + 1/2 + ... + 1/9).
    factor = 9 * sum(1 / rank for rank in range(1, 10))
    assert first.p_value == pytest.approx(first.difference.p_value * factor)


def test_false_discoveries_of_a_window_stay_under_their_rate() -> None:
    false_alarms = 0
    for _ in range(200):
        findings = compare(usual(RANDOM, 500), [usual(RANDOM, 300)], min_effect=0.01)
        false_alarms += any(finding.drifts(0.05, 0.01) for finding in findings)
    assert false_alarms <= 20


def test_of_effects_alike_the_earlier_on_the_way_is_the_cause() -> None:
    assert ranked_features(make_finding("label", 0.8), make_finding("unknown_share", 0.75)) == [
        "unknown_share",
        "label",
    ]
    assert ranked_features(make_finding("confidence", 0.5), make_finding("text_length", 0.12)) == [
        "confidence",
        "text_length",
    ]


def test_the_order_of_causes_has_no_steps() -> None:
    # Each is within the factor of the one before; all are compared with the largest that is left.
    effects = {"label": 0.40, "confidence": 0.39, "distance": 0.28, "token_count": 0.2}
    features = ranked_features(*(make_finding(name, effect) for name, effect in effects.items()))
    assert features == ["distance", "label", "confidence", "token_count"]


def test_what_does_not_differ_comes_last_whatever_its_effect() -> None:
    assert ranked_features(
        make_finding("text_length", 0.9, p_value=1.0), make_finding("label", 0.1)
    ) == [
        "label",
        "text_length",
    ]
