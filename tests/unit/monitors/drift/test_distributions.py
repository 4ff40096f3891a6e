import numpy as np
import pytest
from numpy.typing import NDArray

from monitors.drift.distributions import Distribution, distribution
from monitors.drift.features import FEATURES
from monitors.drift.whylogs_profiles import Profile
from tests.unit.monitors.drift.profiles import answers, usual

RANDOM = np.random.default_rng(20261128)
BY_NAME = {feature.name: feature for feature in FEATURES}


def found(name: str, current: Profile, baseline: Profile | None = None) -> Distribution:
    each = distribution(BY_NAME[name], current, baseline)
    assert each is not None
    return each


@pytest.mark.parametrize("name", BY_NAME)
def test_shares_sum_to_one_and_have_a_name_each(name: str) -> None:
    each = found(name, usual(RANDOM), usual(RANDOM))
    assert each.baseline is not None
    for shares in (each.current, each.baseline):
        assert len(shares) == len(each.names)
        assert sum(shares) == pytest.approx(1)
        assert min(shares) >= 0


def test_numbers_are_counted_in_their_bins() -> None:
    lengths = RANDOM.integers(1, 11, 1000).astype(float)
    each = found("text_length", Profile.of(answers(RANDOM, 1000, text_length=lengths)))
    assert each.edges is not None
    exact, _ = np.histogram(lengths, each.edges)
    # Every whole number has a bin; the sketch of a thousand numbers is nearly exact.
    assert np.diff(each.edges).tolist() == [1.0] * len(each.names)
    assert each.current == pytest.approx(exact / 1000, abs=0.02)


def test_an_outlier_squeezes_nothing() -> None:
    lengths: NDArray[np.float64] = np.append(RANDOM.integers(0, 100, 999), 1e6)
    each = found("text_length", Profile.of(answers(RANDOM, 1000, text_length=lengths)))
    assert each.edges is not None
    assert each.edges[-1] < 110
    assert sum(each.current) == pytest.approx(1)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3, -7.5, 1e-9, 1e9 + 0.5])
def test_a_feature_that_is_always_the_same_is_one_bar(value: float) -> None:
    same = Profile.of(answers(RANDOM, 1000, confidence=np.full(1000, value)))
    nearly = Profile.of(answers(RANDOM, 1000, confidence=np.full(1000, value * (1 + 1e-12))))
    for each in (found("confidence", same), found("confidence", same, nearly)):
        assert max(each.current) == pytest.approx(1)
        assert each.edges is not None
        assert each.edges[0] < value < each.edges[-1]


def test_classes_are_those_of_both_most_frequent_first_and_the_rest_together() -> None:
    label = np.array(["a"] * 800 + ["b"] * 150 + [f"rare-{each}" for each in range(50)])
    current = Profile.of(answers(RANDOM, 1000, label=label))
    each = found("label", current, Profile.of(answers(RANDOM, 1000, label=np.array(["c"] * 1000))))
    assert each.baseline is not None
    assert each.names[:3] == ("c", "a", "b")
    assert (each.current[0], each.baseline[0]) == (0, 1)
    assert each.names[-1] == "all others"
    assert each.current[-1] == pytest.approx(0.05 - 0.001 * (len(each.names) - 4))


def test_what_no_answer_has_is_not_distributed() -> None:
    nothing = np.full(1000, np.nan)
    current = Profile.of(answers(RANDOM, 1000, distance=nothing))
    assert distribution(BY_NAME["distance"], current, usual(RANDOM)) is None
    one_sided = found("distance", usual(RANDOM), current)
    assert one_sided.baseline is None
