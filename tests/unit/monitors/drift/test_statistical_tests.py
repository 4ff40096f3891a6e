"""The statistics against scipy.stats, and what they say where nothing differs."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from monitors.drift.statistical_tests import classes_differ, numbers_differ
from monitors.drift.whylogs_profiles import Profile

RANDOM = np.random.default_rng(20261128)
UNKNOWN = Profile.of({"other": np.ones(3)})


def of_numbers(values: NDArray[np.float64]) -> Profile:
    return Profile.of({"x": values})


def of_classes(counts: dict[str, int]) -> Profile:
    return Profile.of({"x": np.repeat([*counts], [*counts.values()])})


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_numbers_differ_as_scipy_says(shift: float, decimals: int) -> None:
    before = RANDOM.normal(size=3000).round(decimals)
    now = (RANDOM.normal(size=1000) + shift).round(decimals)
    difference = numbers_differ(of_numbers(before), of_numbers(now), "x")
    expected = stats.ks_2samp(before, now, method="asymp")
    assert difference is not None
    assert difference.effect == pytest.approx(expected.statistic, abs=0.01)
    # Of the same size: the sketch's error moves a p-value.
    assert np.log10(difference.p_value) == pytest.approx(
        np.log10(expected.pvalue), rel=0.15, abs=0.35
    )


def test_p_values_of_numbers_are_even_where_nothing_differs() -> None:
    baseline = RANDOM.normal(size=3000)
    p_values = []
    for _ in range(300):
        difference = numbers_differ(
            of_numbers(RANDOM.permutation(baseline)), of_numbers(RANDOM.normal(size=500)), "x"
        )
        assert difference is not None
        p_values.append(difference.p_value)
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(p_values) <= level) <= level + 0.08


def test_all_the_same_differs_in_nothing() -> None:
    difference = numbers_differ(of_numbers(np.zeros(500)), of_numbers(np.zeros(300)), "x")
    assert difference is not None
    assert (difference.effect, difference.p_value) == (0, 1)


def test_a_point_that_holds_much_of_one_sample_is_seen() -> None:
    before = np.concatenate([np.zeros(900), np.ones(100)])
    now = np.concatenate([np.zeros(600), np.ones(400)])
    difference = numbers_differ(of_numbers(before), of_numbers(now), "x")
    assert difference is not None
    assert difference.effect == pytest.approx(0.3, abs=0.01)
    assert difference.p_value < 1e-20


def test_what_only_one_has_is_not_compared() -> None:
    sample = of_numbers(np.ones(5))
    assert numbers_differ(UNKNOWN, sample, "x") is None
    assert numbers_differ(sample, UNKNOWN, "x") is None
    assert classes_differ(UNKNOWN, of_classes({"a": 5}), "x") is None


def test_chi_square_is_scipys() -> None:
    before, now = {"a": 500, "b": 300, "c": 200}, {"a": 120, "b": 110, "c": 70}
    difference = classes_differ(of_classes(before), of_classes(now), "x")
    expected = stats.chi2_contingency([[*before.values()], [*now.values()]], correction=False)
    assert difference is not None
    assert difference.details["chi_square_p"] == pytest.approx(expected.pvalue, rel=1e-6)


def test_rare_classes_are_pooled_for_chi_square() -> None:
    before = {"a": 900, **{f"rare-{index}": 1 for index in range(50)}}
    now = {"a": 450, **{f"other-{index}": 1 for index in range(25)}}
    difference = classes_differ(of_classes(before), of_classes(now), "x")
    assert difference is not None
    assert float(difference.details["chi_square_p"]) > 0.5


def test_a_class_of_many_that_grew_is_named() -> None:
    shares = np.full(77, 1 / 77)
    before = RANDOM.multinomial(3000, shares)
    grown = shares.copy()
    grown[5] *= 4
    now = RANDOM.multinomial(1000, grown / grown.sum())
    names = [f"class-{index:02}" for index in range(77)]
    difference = classes_differ(
        of_classes(dict(zip(names, before, strict=True))),
        of_classes(dict(zip(names, now, strict=True))),
        "x",
    )
    assert difference is not None
    assert difference.details["class"] == "class-05"
    assert difference.p_value < 1e-3
    # All together say little of one of many.
    assert float(difference.details["chi_square_p"]) > difference.p_value


def test_a_new_class_and_one_that_is_gone_are_seen() -> None:
    difference = classes_differ(
        of_classes({"a": 900, "b": 100}), of_classes({"a": 270, "c": 30}), "x"
    )
    assert difference is not None
    assert difference.p_value < 1e-10
    assert difference.effect > 0.2


def test_one_class_alone_differs_in_nothing() -> None:
    difference = classes_differ(of_classes({"a": 500}), of_classes({"a": 300}), "x")
    assert difference is not None
    assert (difference.details["psi"], difference.p_value) == (0, 1)


def test_p_values_of_classes_are_even_where_nothing_differs() -> None:
    shares = RANDOM.dirichlet(np.full(40, 3.0))
    names = [f"class-{index:02}" for index in range(40)]
    p_values, effects = [], []
    for _ in range(400):
        samples = [RANDOM.multinomial(size, shares) for size in (3000, 1000)]
        before, now = (of_classes(dict(zip(names, sample, strict=True))) for sample in samples)
        difference = classes_differ(before, now, "x")
        assert difference is not None
        p_values.append(difference.p_value)
        effects.append(float(difference.details["psi"]))
    for level in (0.01, 0.05, 0.2):
        assert np.mean(np.array(p_values) <= level) <= level + 0.03
    # Chance alone gives about (40 - 1) * (1/3000 + 1/1000) = 0.052, which is taken off.
    assert np.median(effects) < 0.005
