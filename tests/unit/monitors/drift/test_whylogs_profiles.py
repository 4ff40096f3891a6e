import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pytest

from monitors.drift.features import Columns
from monitors.drift.whylogs_profiles import Profile
from tests.unit.monitors.drift.profiles import answers

AT = datetime(2026, 11, 28, 12, tzinfo=UTC)


def rows(count: int, **changed: np.ndarray) -> Columns:
    return answers(np.random.default_rng(1), count, **changed)


def numbers(*values: float) -> Profile:
    return Profile.of({"text_length": np.array(values)})


def test_a_profile_is_read_back_as_it_was_written() -> None:
    labels = np.array([f"l{length % 2}" for length in range(1, 11)])
    columns = rows(10, text_length=np.arange(1.0, 11), label=labels)
    profile = Profile.read(Profile.of(columns, AT).serialize())
    assert profile.count("text_length") == 10
    assert profile.classes("label") == {"l0": 5, "l1": 5}
    assert profile.quantiles("text_length", [0, 1]).tolist() == [1, 10]
    assert profile.started_at == AT


def test_shares_below_leave_the_point_itself_out() -> None:
    points = np.array([0.5, 1, 2, 2.5, 4])
    assert numbers(1, 2, 2, 3).below("text_length", points).tolist() == [0, 0, 0.25, 0.75, 1]


def test_profiles_of_several_workers_are_merged() -> None:
    first = Profile.of(rows(3, label=np.full(3, "a"), text_length=np.ones(3)))
    second = Profile.of(rows(1, label=np.array(["b"]), text_length=np.array([5.0])))
    merged_profile = first.merged(second)
    assert (merged_profile.count("label"), merged_profile.classes("label")) == (4, {"a": 3, "b": 1})
    assert merged_profile.quantiles("text_length", [0, 1]).tolist() == [1, 5]
    # Neither is changed by it.
    assert (first.count("label"), second.count("label")) == (3, 1)


def test_a_missing_distance_is_left_out() -> None:
    partial_profile = Profile.of(rows(2, distance=np.array([0.5, np.nan])))
    assert (partial_profile.count("distance"), partial_profile.count("confidence")) == (1, 2)
    empty_profile = Profile.of(rows(1, distance=np.array([np.nan])))
    assert empty_profile.count("distance") == 0
    assert np.isnan(empty_profile.quantiles("distance", [0.5])).all()
    assert empty_profile.merged(partial_profile).count("distance") == 1


def test_counts_of_many_classes_are_exact() -> None:
    labels = [f"label-{index}" for index in range(500) for _ in range(index % 7 + 1)]
    counts = Profile.of({"label": np.array(labels)}).classes("label")
    assert counts == {f"label-{index}": index % 7 + 1 for index in range(500)}


@pytest.mark.parametrize("size", [1000, 10_000])
def test_quantiles_are_near_those_of_the_numbers(size: int) -> None:
    values = np.random.default_rng(1).gamma(2, size=size)
    quantiles = Profile.of({"text_length": values}).quantiles("text_length", [0.1, 0.5, 0.9])
    ranks = (values[:, None] <= quantiles).mean(axis=0)
    assert ranks == pytest.approx([0.1, 0.5, 0.9], abs=0.01)


def test_whylogs_brings_nothing_that_costs_much() -> None:
    code = (
        "import sys, monitors.drift.whylogs_profiles\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert not {"pandas", "sklearn", "scipy", "pyarrow", "PIL"} & {*process.stdout.split()}


def test_what_is_hidden_from_whylogs_is_there_again() -> None:
    code = (
        "import monitors.drift.whylogs_profiles, pandas, sklearn\n"
        "print(pandas.DataFrame({'a': [1]}).a.sum())"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert process.stdout.strip() == "1"
