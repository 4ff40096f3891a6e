"""The policy alone: every batch within its bounds, the oldest never left behind."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runners.batching.selection import Bounds, choose

ROOMY = Bounds(items=64, tokens=10_000, padding=0.1)
ANY_LENGTH = 0.99
quickly = settings(max_examples=300, deadline=None, derandomize=True, database=None)

costs_ = st.integers(0, 60)
bounds_ = st.builds(
    Bounds,
    items=st.integers(1, 10),
    tokens=st.integers(1, 200),
    padding=st.floats(0, ANY_LENGTH, allow_subnormal=False),
)


@dataclass(eq=False)
class Waiting:
    """An item of the simulation; a lower ``age`` came earlier."""

    age: int
    cost: int
    overtaken: int = 0


def nobody(costs: Sequence[int]) -> list[bool]:
    return [False for _ in costs]


def padding_of(costs: Sequence[int]) -> int:
    return max(costs) * len(costs) - sum(costs)


def test_one_waiting_goes() -> None:
    assert choose([7], [False], ROOMY) == [0]


def test_oldest_goes_though_others_would_fit_better() -> None:
    assert choose([50, 10, 10, 10], nobody([0] * 4), ROOMY) == [0]


@pytest.mark.parametrize("due", [False, True])
def test_oldest_over_the_budget_goes_alone(*, due: bool) -> None:
    assert choose([50, 50, 0, 1], [due] * 4, Bounds(items=8, tokens=49, padding=ANY_LENGTH)) == [0]


def test_oldest_of_exactly_the_budget_goes_alone() -> None:
    assert choose([50, 50], nobody([0] * 2), Bounds(items=8, tokens=50, padding=0)) == [0]


def test_nearest_lengths_join_first_and_of_equal_ones_the_oldest() -> None:
    costs = [100, 97, 103, 100, 110, 100]

    bounds = Bounds(items=4, tokens=10_000, padding=0.1)
    assert choose(costs, nobody(costs), bounds) == [0, 3, 5, 1]


def test_what_would_pad_too_much_waits_and_the_next_is_tried() -> None:
    # 90 beside 100 pads 5 %; 80 beside both would pad 10 %, and 50 beside them 20 %.
    assert choose([100, 50, 90, 80], nobody([0] * 4), ROOMY) == [0, 2, 3]
    tight = Bounds(items=64, tokens=10_000, padding=0.09)
    assert choose([100, 50, 90, 80], nobody([0] * 4), tight) == [0, 2]


def test_packed_items_go_by_age_whatever_their_lengths() -> None:
    packed = Bounds(items=4, tokens=130, padding=0, packed=True)
    # 100 and 5 and 20 are 125 of 130; 30 does not fit any more, and 5 does.
    assert choose([100, 5, 20, 30, 5], nobody([0] * 5), packed) == [0, 1, 2, 4]


def test_without_padding_only_equal_lengths_join() -> None:
    bounds = Bounds(items=64, tokens=10_000, padding=0)
    assert choose([10, 11, 10, 9, 10], nobody([0] * 5), bounds) == [0, 2, 4]


def test_padded_tokens_keep_to_the_budget() -> None:
    # 3 x 10 is the budget; a fourth of 1 would be padded to 10.
    bounds = Bounds(items=64, tokens=30, padding=ANY_LENGTH)
    assert choose([10, 10, 10, 1], nobody([0] * 4), bounds) == [0, 1, 2]
    # 11 would pad the first to 11: 2 x 11 fits, 3 x 11 does not.
    assert choose([10, 11, 11], nobody([0] * 3), bounds) == [0, 1]


def test_count_is_kept() -> None:
    bounds = Bounds(items=2, tokens=10_000, padding=0.1)
    assert choose([5] * 4, nobody([0] * 4), bounds) == [0, 1]


def test_due_go_in_order_whatever_padding_and_before_the_nearest() -> None:
    bounds = Bounds(items=3, tokens=10_000, padding=0)
    assert choose([5, 5, 90, 1], [False, False, True, True], bounds) == [0, 2, 3]


def test_nearest_are_measured_from_all_who_are_due() -> None:
    bounds = Bounds(items=3, tokens=10_000, padding=ANY_LENGTH)
    assert choose([10, 50, 20, 40], [True, False, False, True], bounds) == [0, 3, 2]
    assert choose([40, 50, 20, 10], [True, False, False, True], bounds) == [0, 3, 2]


def test_nobody_overtakes_one_who_is_due_and_does_not_fit() -> None:
    bounds = Bounds(items=8, tokens=40, padding=ANY_LENGTH)
    # 30 beside 10 would be 60: it waits, and so does all that is younger or came between.
    assert choose([10, 10, 30, 10], [False, False, True, False], bounds) == [0]
    assert choose([10, 20, 30, 10], [False, True, True, True], bounds) == [0, 1]


@quickly
@given(st.lists(costs_, min_size=1, max_size=40), bounds_)
def test_batch_keeps_to_its_bounds_when_nobody_is_due(costs: list[int], bounds: Bounds) -> None:
    chosen = choose(costs, nobody(costs), bounds)
    batch = [costs[index] for index in chosen]

    assert chosen[0] == 0
    assert len(set(chosen)) == len(chosen) <= bounds.items
    assert len(batch) == 1 or max(batch) * len(batch) <= bounds.tokens
    assert len(batch) == 1 or padding_of(batch) <= bounds.padding * max(batch) * len(batch)


@quickly
@given(st.lists(st.tuples(costs_, st.booleans()), min_size=1, max_size=40), bounds_)
def test_batch_keeps_to_its_budgets_whoever_is_due(
    waiting: list[tuple[int, bool]], bounds: Bounds
) -> None:
    costs, due = [cost for cost, _ in waiting], [is_due for _, is_due in waiting]
    chosen = choose(costs, due, bounds)
    batch = [costs[index] for index in chosen]
    left_due = [index for index in range(len(costs)) if due[index] and index not in chosen]

    assert chosen[0] == 0
    assert len(set(chosen)) == len(chosen) <= bounds.items
    assert len(batch) == 1 or max(batch) * len(batch) <= bounds.tokens
    assert not left_due or max(chosen) < left_due[0]


@quickly
@given(st.integers(1, 60), st.integers(1, 40), bounds_)
def test_equal_lengths_fill_the_batch_in_order(cost: int, count: int, bounds: Bounds) -> None:
    fits = max(1, min(count, bounds.items, bounds.tokens // cost))

    assert choose([cost] * count, nobody([0] * count), bounds) == [*range(fits)]


@quickly
@given(
    st.lists(st.lists(costs_, max_size=12), min_size=1, max_size=20),
    st.integers(0, 4),
    st.integers(1, 12),
    bounds_,
)
def test_nobody_is_overtaken_more_often_than_allowed(
    arrivals: list[list[int]], max_overtakes: int, window_size: int, bounds: Bounds
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
        batch = [window[index] for index in choose([item.cost for item in window], due, bounds)]
        served += [item.age for item in batch]
        queue = [item for item in queue if item not in batch]
        youngest = max(item.age for item in batch)
        for item in queue:
            item.overtaken += item.age < youngest
            assert item.overtaken <= max_overtakes

    assert sorted(served) == [*range(came)]
