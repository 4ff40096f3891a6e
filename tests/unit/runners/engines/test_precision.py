import numpy as np
import pytest

from runners.engines.precision import TOLERANCE, parity

EXACT = np.array([[4.0, 0.0, 0.0], [0.0, 3.0, 0.0], [1.0, 1.001, 0.0]], np.float32)


def test_the_same_logits_hold() -> None:
    comparison = parity(EXACT, EXACT)
    assert comparison.holds
    assert (comparison.texts, comparison.changed_labels, comparison.max_difference) == (3, 0, 0)


def test_rounding_holds_and_near_ties_may_change_places() -> None:
    half = EXACT.copy()
    half[2] = [1.001, 1.0, 0.0]
    comparison = parity(EXACT, half)
    assert comparison.holds
    assert 0 < comparison.max_difference < TOLERANCE


def test_a_label_that_changes_clearly_does_not_hold() -> None:
    half = EXACT.copy()
    half[0] = [0.0, 4.0, 0.0]
    comparison = parity(EXACT, half)
    assert not comparison.holds
    assert comparison.changed_labels == 1


def test_the_same_label_much_surer_does_not_hold() -> None:
    comparison = parity(EXACT, EXACT * 3)
    assert comparison.changed_labels == 0
    assert not comparison.holds


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_does_not_hold(value: float) -> None:
    half = EXACT.copy()
    half[1, 1] = value
    with np.errstate(invalid="ignore"):
        assert not parity(EXACT, half).holds
