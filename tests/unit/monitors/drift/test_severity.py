import numpy as np
import pytest

from monitors.drift.severity import level


def test_all_levels_together_stay_under_the_rate() -> None:
    assert sum(level(window, 0, 0.05) for window in range(1, 200_000)) < 0.05


def test_each_drift_that_was_told_allows_more() -> None:
    assert level(10, 3, 0.05) == pytest.approx(4 * level(10, 0, 0.05))


def test_levels_fall_and_stay_above_zero() -> None:
    levels = [level(window, 0, 0.05) for window in (1, 2, 3, 10, 100, 10_000, 1_000_000)]
    assert levels == sorted(levels, reverse=True)
    assert levels[-1] > 1e-10


def test_few_of_all_streams_without_drift_are_told_any() -> None:
    random = np.random.default_rng(20261128)
    levels = np.array([level(window, 0, 0.05) for window in range(1, 1001)])
    false = (random.random((2000, 1000)) <= levels).any(axis=1).mean()
    assert 0.005 < false < 0.05
