import random

import numpy as np
import pytest

from monitors.reservoir import Sample
from tests.records import recorded


def test_what_has_room_is_kept_in_order() -> None:
    sample = Sample(5, random.Random(1))
    records = [recorded(item=item) for item in range(5)]
    assert sample.add(records[:3]) + sample.add(records[3:]) == 0
    assert sample.take() == records
    assert sample.take() == []


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_past_its_size_it_is_a_fair_sample_of_all(steps: int) -> None:
    counts = np.zeros(100)
    for seed in range(2000):
        sample = Sample(10, random.Random(seed))
        dropped = 0
        for at in range(0, 100, steps):
            dropped += sample.add([recorded(item=item) for item in range(100)[at : at + steps]])
        kept = sample.take()
        assert (len(kept), dropped) == (10, 90)
        counts[[record.item for record in kept]] += 1
    # Each 200 times of 2,000: five standard deviations are 67.
    assert np.abs(counts - 200).max() < 67


def test_it_begins_anew_once_it_was_taken() -> None:
    sample = Sample(2, random.Random(1))
    sample.add([recorded(item=item) for item in range(50)])
    sample.take()
    fresh = [recorded(item=100), recorded(item=101)]
    assert sample.add(fresh) == 0
    assert sample.take() == fresh
