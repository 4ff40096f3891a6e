"""Kaiten's own metrics tell how much of its batches was padding."""

import pytest

from benchmarks.measuring import Timing, parse_padding
from benchmarks.texts import SHAPES

METRICS = """
# TYPE kaiten_batch_padding_ratio histogram
kaiten_batch_padding_ratio_bucket{model="a",version="1.0.0",le="0.1"} 4.0
kaiten_batch_padding_ratio_sum{model="a",version="1.0.0"} 0.5
kaiten_batch_padding_ratio_count{model="a",version="1.0.0"} 10.0
kaiten_batch_padding_ratio_sum{model="b",version="1.0.0"} 0.25
kaiten_batch_padding_ratio_count{model="b",version="1.0.0"} 5.0
kaiten_batch_items_sum{model="a",version="1.0.0"} 99.0
"""


def test_padding_is_added_over_models() -> None:
    assert parse_padding(METRICS) == (0.75, 15.0)


def test_without_the_metric_there_is_no_padding() -> None:
    assert parse_padding("up 1.0\n") is None


@pytest.mark.parametrize(("shape", "seconds"), [("1x32", 6), ("32x4", 12), ("open70", 12)])
def test_shapes_of_few_requests_are_measured_longer(shape: str, seconds: float) -> None:
    assert Timing(seconds=6).of(SHAPES[shape]) == seconds
