"""The measures against figures worked out by hand, and the interval against many resamplings."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.evaluate.measures import (
    accuracy_by_slice,
    compare_versions,
    expected_calibration_error,
    measure,
    reliability_bins,
)

LABELS = ("a", "b", "c")
# a a b b c: four right, one b taken for c.
RIGHT = np.array([0, 0, 1, 1, 2])
SCORES = np.array(
    [[0.9, 0.1, 0], [0.6, 0.3, 0.1], [0.2, 0.8, 0], [0.1, 0.2, 0.7], [0, 0, 1]], dtype=np.float32
)


def test_figures_worked_out_by_hand() -> None:
    measures = measure(RIGHT, SCORES, LABELS)
    assert measures.rows == 5
    assert measures.accuracy == pytest.approx(4 / 5)
    assert measures.per_class["b"].precision == pytest.approx(1)
    assert measures.per_class["b"].recall == pytest.approx(1 / 2)
    assert measures.per_class["c"].precision == pytest.approx(1 / 2)
    assert measures.per_class["c"].f1 == pytest.approx(2 / 3)
    assert measures.macro.f1 == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    assert measures.weighted.recall == pytest.approx(4 / 5)
    assert measures.support == {"a": 2, "b": 2, "c": 1}
    assert measures.confusion == [[2, 0, 0], [0, 1, 1], [0, 0, 1]]
    # Each row is in a bin of its own: |1-.9|, |1-.6|, |1-.8|, |0-.7|, |1-1|.
    assert measures.calibration_error == pytest.approx((0.1 + 0.4 + 0.2 + 0.7 + 0) / 5)


def test_label_without_rows_counts_in_no_average() -> None:
    present = RIGHT != 2
    measures = measure(RIGHT[present], SCORES[present], LABELS)
    assert measures.support["c"] == 0
    assert measures.macro.f1 == pytest.approx((1 + 2 / 3) / 2)


def test_confidence_that_matches_accuracy_is_calibrated() -> None:
    generator = np.random.default_rng(1)
    confidence = generator.uniform(0.3, 1, 50_000).astype(np.float32)
    correct = generator.uniform(size=50_000) < confidence
    assert expected_calibration_error(reliability_bins(confidence, correct)) < 0.01
    assert (
        expected_calibration_error(reliability_bins(confidence, correct & (confidence < 0.6))) > 0.3
    )


def test_comparison_counts_rows_that_one_version_has_right() -> None:
    candidate = np.array([True] * 80 + [False] * 20)
    baseline = np.array([True] * 70 + [False] * 10 + [True] * 5 + [False] * 15)
    measures = compare_versions(candidate, baseline, "ours:1.0.0")
    assert (measures.only_candidate_correct, measures.only_baseline_correct) == (10, 5)
    assert measures.difference == pytest.approx(0.05)
    assert measures.low < 0.05 < measures.high
    # Of 15 that differ, 10 or more of a kind by chance: 2 * sum of C(15, k) for k >= 10, over 2^15.
    assert measures.p_value == pytest.approx(2 * (3003 + 1365 + 455 + 105 + 15 + 1) / 2**15)


def test_versions_that_agree_do_not_differ() -> None:
    same = np.array([True, False, True])
    measures = compare_versions(same, same, "ours:1.0.0")
    assert (measures.difference, measures.low, measures.high, measures.p_value) == (0, 0, 0, 1)


def test_interval_covers_the_true_difference() -> None:
    # Two versions right on 85 and 80 of 100 rows, of which they share most.
    generator = np.random.default_rng(20261125)
    shares = [0.75, 0.10, 0.05, 0.10]
    covered = 0
    for _ in range(200):
        kind = generator.choice(4, size=600, p=shares)
        measures = compare_versions(
            (kind == 0) | (kind == 1), (kind == 0) | (kind == 2), "ours:1.0.0"
        )
        covered += measures.low <= 0.05 <= measures.high
    assert covered >= 180


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_comparison_turns_round(pairs: list[tuple[bool, bool]]) -> None:
    candidate, baseline = (np.array(side) for side in zip(*pairs, strict=True))
    forwards, backwards = (
        compare_versions(candidate, baseline, "a"),
        compare_versions(baseline, candidate, "b"),
    )
    assert forwards.difference == pytest.approx(-backwards.difference)
    assert forwards.p_value == pytest.approx(backwards.p_value)
    assert forwards.low - 1e-9 <= forwards.difference <= forwards.high + 1e-9


def test_slices_have_their_own_accuracy() -> None:
    correct = np.array([True, True, False, True])
    measures = accuracy_by_slice(correct, {"channel": ["mail", "chat", "chat", "mail"]})
    assert measures == {"channel": {"chat": (2, 0.5), "mail": (2, 1.0)}}
