import numpy as np
import pytest
from numpy.typing import NDArray

from monitors.drift.distributions import Distribution, distribution
from monitors.drift.features import FEATURES
from monitors.drift.whylogs_profiles import Profile
from tests.unit.monitors.drift.profiles import answers, usual

RANDOM = np.random.default_rng(20261128)
BY_NAME = {feature.name: feature for feature in FEATURES}


def distribution_of(name: str, current: Profile, baseline: Profile | None = None) -> Distribution:
    feature_distribution = distribution(BY_NAME[name], current, baseline)
    assert feature_distribution is not None
    return feature_distribution


@pytest.mark.parametrize("name", BY_NAME)
def test_shares_sum_to_one_and_have_a_name_each(name: str) -> None:
    feature_distribution = distribution_of(name, usual(RANDOM), usual(RANDOM))
    assert feature_distribution.baseline is not None
    for shares in (feature_distribution.current, feature_distribution.baseline):
        assert len(shares) == len(feature_distribution.names)
        assert sum(shares) == pytest.approx(1)
        assert min(shares) >= 0


def test_numbers_are_counted_in_their_bins() -> None:
    lengths = RANDOM.integers(1, 11, 1000).astype(float)
    bins = distribution_of("text_length", Profile.of(answers(RANDOM, 1000, text_length=lengths)))
    assert bins.edges is not None
    exact, _ = np.histogram(lengths, bins.edges)
    # Every whole number has a bin; the sketch of a thousand numbers is nearly exact.
    assert np.diff(bins.edges).tolist() == [1.0] * len(bins.names)
    assert bins.current == pytest.approx(exact / 1000, abs=0.02)


def test_an_outlier_squeezes_nothing() -> None:
    lengths: NDArray[np.float64] = np.append(RANDOM.integers(0, 100, 999), 1e6)
    bins = distribution_of("text_length", Profile.of(answers(RANDOM, 1000, text_length=lengths)))
    assert bins.edges is not None
    assert bins.edges[-1] < 110
    assert sum(bins.current) == pytest.approx(1)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3, -7.5, 1e-9, 1e9 + 0.5])
def test_a_feature_that_is_always_the_same_is_one_bar(value: float) -> None:
    same = Profile.of(answers(RANDOM, 1000, confidence=np.full(1000, value)))
    nearly = Profile.of(answers(RANDOM, 1000, confidence=np.full(1000, value * (1 + 1e-12))))
    for bins in (distribution_of("confidence", same), distribution_of("confidence", same, nearly)):
        assert max(bins.current) == pytest.approx(1)
        assert bins.edges is not None
        assert bins.edges[0] < value < bins.edges[-1]


def test_classes_are_those_of_both_most_frequent_first_and_the_rest_together() -> None:
    label = np.array(["a"] * 800 + ["b"] * 150 + [f"rare-{number}" for number in range(50)])
    current = Profile.of(answers(RANDOM, 1000, label=label))
    classes = distribution_of(
        "label", current, Profile.of(answers(RANDOM, 1000, label=np.array(["c"] * 1000)))
    )
    assert classes.baseline is not None
    assert classes.names[:3] == ("c", "a", "b")
    assert (classes.current[0], classes.baseline[0]) == (0, 1)
    assert classes.names[-1] == "all others"
    assert classes.current[-1] == pytest.approx(0.05 - 0.001 * (len(classes.names) - 4))


def test_what_no_answer_has_is_not_distributed() -> None:
    nan_distances = np.full(1000, np.nan)
    current = Profile.of(answers(RANDOM, 1000, distance=nan_distances))
    assert distribution(BY_NAME["distance"], current, usual(RANDOM)) is None
    one_sided = distribution_of("distance", usual(RANDOM), current)
    assert one_sided.baseline is None
