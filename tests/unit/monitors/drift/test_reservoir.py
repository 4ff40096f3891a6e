import sys
from random import Random

import numpy as np
import pytest

from monitors.drift.reservoir import Reservoir
from tests.prediction_events import prediction_event

AMPLE = 1 << 20
BYTES = sys.getsizeof(prediction_event().text)


def test_what_has_room_is_kept_in_order() -> None:
    reservoir = Reservoir(5, AMPLE, Random(1))
    events = [prediction_event(item=item) for item in range(5)]
    assert reservoir.add(events[:3]) + reservoir.add(events[3:]) == 0
    assert reservoir.take() == events
    assert reservoir.take() == []


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_past_its_size_it_is_a_fair_sample_of_all(steps: int) -> None:
    counts = np.zeros(100)
    for seed in range(2000):
        reservoir = Reservoir(10, AMPLE, Random(seed))
        dropped = 0
        for at in range(0, 100, steps):
            dropped += reservoir.add(
                [prediction_event(item=item) for item in range(100)[at : at + steps]]
            )
        sample = reservoir.take()
        assert (len(sample), dropped) == (10, 90)
        counts[[event.item for event in sample]] += 1
    # Each 200 times of 2,000: five standard deviations are 67.
    assert np.abs(counts - 200).max() < 67


def test_it_begins_anew_once_it_was_taken() -> None:
    reservoir = Reservoir(2, AMPLE, Random(1))
    reservoir.add([prediction_event(item=item) for item in range(50)])
    reservoir.take()
    fresh = [prediction_event(item=100), prediction_event(item=101)]
    assert reservoir.add(fresh) == 0
    assert reservoir.take() == fresh


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_it_stays_within_its_bytes_as_a_fair_sample(steps: int) -> None:
    counts = np.zeros(100)
    for seed in range(2000):
        reservoir = Reservoir(50, 10 * BYTES + 1, Random(seed))
        events = [prediction_event(item=item) for item in range(100)]
        dropped = sum(reservoir.add(events[at : at + steps]) for at in range(0, 100, steps))
        sample = reservoir.take()
        assert (len(sample), dropped) == (10, 90)
        counts[[event.item for event in sample]] += 1
    assert np.abs(counts - 200).max() < 67


def test_a_text_over_all_bytes_is_kept_alone() -> None:
    reservoir = Reservoir(10, BYTES, Random(1))
    assert (
        reservoir.add([prediction_event(text="x" * 1000), prediction_event(text="y" * 1000)]) == 1
    )
    assert len(reservoir.take()) == 1
    assert reservoir.add([prediction_event()]) == 0
