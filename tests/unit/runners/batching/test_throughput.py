import pytest

from runners.batching.throughput import Throughput


def test_nothing_is_known_before_the_first_batch() -> None:
    assert Throughput().duration_s(100, 10) == 0


def test_first_batch_counts_whole_and_each_next_a_tenth() -> None:
    throughput = Throughput()
    throughput.add_batch(10.0, items=1, cost=1)
    assert throughput.duration_s(3, 0) == 30
    throughput.add_batch(20.0, items=1, cost=1)
    assert throughput.duration_s(1, 0) == 11


def test_cost_is_what_counts() -> None:
    throughput = Throughput()
    throughput.add_batch(2.0, items=20, cost=200)
    assert throughput.duration_s(512, 0) == pytest.approx(5.12)


def test_what_is_not_measured_yet_is_taken_for_the_mean_item() -> None:
    throughput = Throughput()
    throughput.add_batch(2.0, items=20, cost=200)
    assert throughput.duration_s(0, 5) == pytest.approx(0.5)


def test_small_batches_do_not_outweigh_large_ones() -> None:
    throughput = Throughput()
    for _ in range(100):
        throughput.add_batch(1.0, items=1, cost=1)
        throughput.add_batch(1.0, items=21, cost=21)
    # 22 items in 2 s, though the newer half weighs a little more.
    assert throughput.duration_s(22, 0) == pytest.approx(2.0, rel=0.1)


def test_items_that_cost_nothing_take_no_time() -> None:
    throughput = Throughput()
    throughput.add_batch(1.0, items=3, cost=0)
    assert throughput.duration_s(0, 3) == 0
