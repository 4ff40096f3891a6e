"""The policy alone: every batch within its limits, the oldest never left behind."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runners.batching.selection import BatchLimits, choose_batch

ROOMY = BatchLimits(items=64, tokens=10_000, padding_ratio=0.1)
ANY_LENGTH = 0.99
quickly = settings(max_examples=300, deadline=None, derandomize=True, database=None)

costs_ = st.integers(0, 60)
limits_ = st.builds(
    BatchLimits,
    items=st.integers(1, 10),
    tokens=st.integers(1, 200),
    padding_ratio=st.floats(0, ANY_LENGTH, allow_subnormal=False),
)


@dataclass(eq=False)
class Waiting:
    """An item of the simulation; a lower ``age`` came earlier."""

    age: int
    cost: int
    overtaken: int = 0


def none_due(costs: Sequence[int]) -> list[bool]:
    return [False for _ in costs]


def padding_of(costs: Sequence[int]) -> int:
    return max(costs) * len(costs) - sum(costs)


def test_one_waiting_goes() -> None:
    assert choose_batch([7], [False], ROOMY) == [0]


def test_oldest_goes_though_others_would_fit_better() -> None:
    assert choose_batch([50, 10, 10, 10], none_due([0] * 4), ROOMY) == [0]


@pytest.mark.parametrize("due", [False, True])
def test_oldest_over_the_budget_goes_alone(*, due: bool) -> None:
    assert choose_batch(
        [50, 50, 0, 1], [due] * 4, BatchLimits(items=8, tokens=49, padding_ratio=ANY_LENGTH)
    ) == [0]


def test_oldest_of_exactly_the_budget_goes_alone() -> None:
    assert choose_batch(
        [50, 50], none_due([0] * 2), BatchLimits(items=8, tokens=50, padding_ratio=0)
    ) == [0]


def test_nearest_lengths_join_first_and_of_equal_ones_the_oldest() -> None:
    costs = [100, 97, 103, 100, 110, 100]

    limits = BatchLimits(items=4, tokens=10_000, padding_ratio=0.1)
    assert choose_batch(costs, none_due(costs), limits) == [0, 3, 5, 1]


def test_what_would_pad_too_much_waits_and_the_next_is_tried() -> None:
    # 90 beside 100 pads 5 %; 80 beside both would pad 10 %, and 50 beside them 20 %.
    assert choose_batch([100, 50, 90, 80], none_due([0] * 4), ROOMY) == [0, 2, 3]
    tight = BatchLimits(items=64, tokens=10_000, padding_ratio=0.09)
    assert choose_batch([100, 50, 90, 80], none_due([0] * 4), tight) == [0, 2]


def test_packed_items_go_by_age_whatever_their_lengths() -> None:
    packed = BatchLimits(items=4, tokens=130, padding_ratio=0, packed=True)
    # 100 and 5 and 20 are 125 of 130; 30 does not fit any more, and 5 does.
    assert choose_batch([100, 5, 20, 30, 5], none_due([0] * 5), packed) == [0, 1, 2, 4]


def test_without_padding_only_equal_lengths_join() -> None:
    limits = BatchLimits(items=64, tokens=10_000, padding_ratio=0)
    assert choose_batch([10, 11, 10, 9, 10], none_due([0] * 5), limits) == [0, 2, 4]


def test_padded_tokens_keep_to_the_budget() -> None:
    # 3 x 10 is the budget; a fourth of 1 would be padded to 10.
    limits = BatchLimits(items=64, tokens=30, padding_ratio=ANY_LENGTH)
    assert choose_batch([10, 10, 10, 1], none_due([0] * 4), limits) == [0, 1, 2]
    # 11 would pad the first to 11: 2 x 11 has_room, 3 x 11 does not.
    assert choose_batch([10, 11, 11], none_due([0] * 3), limits) == [0, 1]


def test_count_is_kept() -> None:
    limits = BatchLimits(items=2, tokens=10_000, padding_ratio=0.1)
    assert choose_batch([5] * 4, none_due([0] * 4), limits) == [0, 1]


def test_due_go_in_order_whatever_padding_and_before_the_nearest() -> None:
    limits = BatchLimits(items=3, tokens=10_000, padding_ratio=0)
    assert choose_batch([5, 5, 90, 1], [False, False, True, True], limits) == [0, 2, 3]


def test_nearest_are_measured_from_all_who_are_due() -> None:
    limits = BatchLimits(items=3, tokens=10_000, padding_ratio=ANY_LENGTH)
    assert choose_batch([10, 50, 20, 40], [True, False, False, True], limits) == [0, 3, 2]
    assert choose_batch([40, 50, 20, 10], [True, False, False, True], limits) == [0, 3, 2]


def test_nobody_overtakes_one_who_is_due_and_does_not_fit() -> None:
    limits = BatchLimits(items=8, tokens=40, padding_ratio=ANY_LENGTH)
    # 30 beside 10 would be 60: it waits, and so does all that is younger or came between.
    assert choose_batch([10, 10, 30, 10], [False, False, True, False], limits) == [0]
    assert choose_batch([10, 20, 30, 10], [False, True, True, True], limits) == [0, 1]


@quickly
@given(st.lists(costs_, min_size=1, max_size=40), limits_)
def test_batch_keeps_to_its_limits_when_nobody_is_due(
    costs: list[int], limits: BatchLimits
) -> None:
    chosen = choose_batch(costs, none_due(costs), limits)
    batch = [costs[index] for index in chosen]

    assert chosen[0] == 0
    assert len(set(chosen)) == len(chosen) <= limits.items
    assert len(batch) == 1 or max(batch) * len(batch) <= limits.tokens
    assert len(batch) == 1 or padding_of(batch) <= limits.padding_ratio * max(batch) * len(batch)


@quickly
@given(st.lists(st.tuples(costs_, st.booleans()), min_size=1, max_size=40), limits_)
def test_batch_keeps_to_its_budgets_whoever_is_due(
    waiting: list[tuple[int, bool]], limits: BatchLimits
) -> None:
    costs, due = [cost for cost, _ in waiting], [is_due for _, is_due in waiting]
    chosen = choose_batch(costs, due, limits)
    batch = [costs[index] for index in chosen]
    left_due = [index for index in range(len(costs)) if due[index] and index not in chosen]

    assert chosen[0] == 0
    assert len(set(chosen)) == len(chosen) <= limits.items
    assert len(batch) == 1 or max(batch) * len(batch) <= limits.tokens
    assert not left_due or max(chosen) < left_due[0]


@quickly
@given(st.integers(1, 60), st.integers(1, 40), limits_)
def test_equal_lengths_fill_the_batch_in_order(cost: int, count: int, limits: BatchLimits) -> None:
    fits = max(1, min(count, limits.items, limits.tokens // cost))

    assert choose_batch([cost] * count, none_due([0] * count), limits) == [*range(fits)]


@quickly
@given(
    st.lists(st.lists(costs_, max_size=12), min_size=1, max_size=20),
    st.integers(0, 4),
    st.integers(1, 12),
    limits_,
)
def test_nobody_is_overtaken_more_often_than_allowed(
    arrivals: list[list[int]], max_overtakes: int, window_size: int, limits: BatchLimits
) -> None:
    queue: list[Waiting] = []
    served: list[int] = []
    came = 0
    while arrivals or queue:
        for cost in arrivals.pop(0) if arrivals else []:
            queue.append(Waiting(came, cost))
            came += 1
        window = queue[:window_size]
        if not window:
            continue
        due = [item.overtaken >= max_overtakes for item in window]
        batch = [
            window[index] for index in choose_batch([item.cost for item in window], due, limits)
        ]
        served += [item.age for item in batch]
        queue = [item for item in queue if item not in batch]
        youngest = max(item.age for item in batch)
        for item in queue:
            item.overtaken += item.age < youngest
            assert item.overtaken <= max_overtakes

    assert sorted(served) == [*range(came)]
