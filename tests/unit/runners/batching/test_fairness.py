"""The shared queue by itself: order, shares, and what no load takes away."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runners.batching.fairness import FairQueue, has_room
from runners.batching.selection import BatchLimits, choose_batch

QUANTUM = 64


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    subject: str
    cost: int = 1


def texts(subject: str, *costs: int) -> list[Text]:
    return [Text(subject, cost) for cost in costs]


def push(queue: FairQueue[Text], entries: Sequence[Text]) -> None:
    queue.push(entries[0].subject, entries, sum(entry.cost for entry in entries))


def take(queue: FairQueue[Text], items: int = 8) -> list[Text]:
    """Take a batch as the batcher does."""
    window = queue.candidates(256, QUANTUM)
    limits = BatchLimits(items=items, tokens=QUANTUM, padding_ratio=0.1)
    costs = [entry.cost for entry in window]
    batch = [window[index] for index in choose_batch(costs, [False] * len(costs), limits)]
    queue.take(batch)
    return batch


def test_single_subject_is_served_in_order_of_arrival() -> None:
    queue: FairQueue[Text] = FairQueue(8)
    first, second = texts("a", 5, 1, 9), texts("a", 3)
    push(queue, first)
    push(queue, second)
    assert queue.candidates(10, QUANTUM) == [*first, *second]
    assert queue.candidates(2, QUANTUM) == first[:2]
    assert (len(queue), queue.cost, queue.items_of("a"), queue.items_of("b")) == (4, 18, 4, 0)


def test_subject_with_less_waiting_goes_first() -> None:
    queue: FairQueue[Text] = FairQueue(8)
    push(queue, texts("heavy", *[10] * 50))
    push(queue, texts("light", 30))
    assert queue.candidates(10, QUANTUM)[0].subject == "light"


def test_service_of_a_subject_that_was_alone_does_not_count_against_it() -> None:
    queue: FairQueue[Text] = FairQueue(8)
    push(queue, texts("first", *[8] * 1000))
    for _ in range(100):
        assert take(queue)
    push(queue, texts("second", *[8] * 400))
    served = Counter(entry.subject for _ in range(20) for entry in take(queue))
    assert abs(served["first"] - served["second"]) <= QUANTUM // 8


def test_subject_that_was_served_a_quantum_more_waits_for_the_others() -> None:
    queue: FairQueue[Text] = FairQueue(100)
    push(queue, texts("a", *[8] * 100))
    push(queue, texts("b", *[8] * 100))
    batches = [take(queue) for _ in range(12)]
    served = Counter[str]()
    for batch in batches:
        served.update({entry.subject: entry.cost for entry in batch})
    assert abs(served["a"] - served["b"]) <= 2 * QUANTUM


def test_subject_that_comes_back_at_once_keeps_what_it_was_served() -> None:
    queue: FairQueue[Text] = FairQueue(100)
    push(queue, texts("steady", *[8] * 1000))
    served = 0
    for _ in range(50):
        if not queue.items_of("returning"):
            push(queue, texts("returning", *[8] * 8))
        served += sum(entry.cost for entry in take(queue) if entry.subject == "returning")
    # Half of 50 batches of 64, and no more than two quanta beside it.
    assert served <= 50 * QUANTUM // 2 + 2 * QUANTUM


def test_what_is_dropped_is_not_charged_and_counts_no_more() -> None:
    queue: FairQueue[Text] = FairQueue(8)
    entries = texts("a", 5, 1, 9)
    push(queue, entries)
    assert queue.drop(lambda entry: entry.cost > 4) == [entries[0], entries[2]]
    assert (len(queue), queue.cost, [*queue]) == (1, 1, [entries[1]])
    assert queue.drop(lambda _: True) == [entries[1]]
    assert (len(queue), queue.cost, queue.costs()) == (0, 0, {})


@pytest.mark.parametrize(
    ("items", "held", "waiting", "expected"),
    [(512, 0, 0, True), (513, 0, 0, False), (1, 511, 511, True), (1, 512, 512, False)],
)
def test_subject_alone_may_hold_the_limit(
    items: int, held: int, waiting: int, *, expected: bool
) -> None:
    assert has_room(items, held, waiting, 512) is expected


requests = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 256)), max_size=200)


@given(requests)
def test_room_is_bounded_and_shared_by_dynamic_thresholds(calls: list[tuple[int, int]]) -> None:
    held = Counter[int]()
    for subject, items in calls:
        if has_room(items, held[subject], held.total(), 512):
            held[subject] += items
    assert held.total() <= 1024 + 128
    least = min(held.values(), default=0)
    # A subject with nothing waiting is refused only where every other holds as little as it asks.
    assert (
        has_room(least // 2 or 1, 0, held.total(), 512) or least < 2 or held.total() > 1024 - least
    )


@pytest.mark.parametrize("heavy", [1, 4, 16, 1000])
def test_heavy_subjects_leave_room_for_light_ones(heavy: int) -> None:
    held = Counter[str]()
    for number in [*range(heavy)] * 2:
        subject = f"heavy {number}"
        for items in (256, 128, 64, 32, 16):
            while has_room(items, held[subject], held.total(), 512):
                held[subject] += items
    for light in range(16):
        for items in range(1, 9):
            assert has_room(items, 0, held.total(), 512)
        held[f"light {light}"] = 8


def test_the_reserve_is_for_those_who_hold_nothing_and_ask_for_little() -> None:
    assert not has_room(1, 1, 1024, 512)
    assert not has_room(9, 0, 1024, 512)
    assert has_room(8, 0, 1144, 512)
    assert not has_room(8, 0, 1145, 512)
    # Of the smallest limit too.
    assert has_room(1, 0, 1, 1)
    assert not has_room(1, 0, 2, 1)


loads = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.lists(st.integers(0, 60), min_size=1, max_size=30)),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(loads, st.integers(0, 4), st.integers(1, 8))
def test_no_load_starves_a_subject_and_everything_is_served_once(
    load: list[tuple[str, list[int]]], max_passed_over: int, items: int
) -> None:
    queue: FairQueue[Text] = FairQueue(max_passed_over)
    pushed: list[Text] = []
    served: list[Text] = []
    waited = Counter[str]()
    arrivals = iter(load)
    while True:
        arrival = next(arrivals, None)
        if arrival is not None:
            entries = texts(arrival[0], *arrival[1])
            push(queue, entries)
            pushed += entries
        if not len(queue):
            break
        batch = take(queue, items)
        # Work is conserved: a device is never idle while something waits.
        assert batch
        served += batch
        subjects = {entry.subject for entry in batch}
        for subject in "abcdef":
            waited[subject] = (
                0 if subject in subjects else waited[subject] + bool(queue.items_of(subject))
            )
            assert waited[subject] <= max_passed_over + 6
    assert len(served) == len({id(entry) for entry in served})
    assert (len(queue), queue.cost) == (0, 0)
    if next(arrivals, None) is None:
        assert {id(entry) for entry in served} == {id(entry) for entry in pushed}


@given(st.lists(st.integers(1, 60), min_size=4, max_size=200))
def test_shared_between_subjects_it_takes_little_more_batches_than_for_one(
    costs: list[int],
) -> None:
    def batches(subjects: str) -> int:
        queue: FairQueue[Text] = FairQueue(8)
        for number, subject in enumerate(subjects):
            if part := costs[number :: len(subjects)]:
                push(queue, texts(subject, *part))
        count = 0
        while len(queue):
            take(queue)
            count += 1
        return count

    # Other heads make other batches, by length all the same.
    assert batches("abcd") <= 1.5 * batches("a") + 4


def test_service_of_idle_subjects_is_forgotten() -> None:
    queue: FairQueue[Text] = FairQueue(8)
    push(queue, texts("steady", *[1] * 5000))
    for number in range(3000):
        push(queue, texts(str(number), 60))
        queue.take([entry for entry in queue.candidates(5, QUANTUM) if entry.subject != "steady"])
    assert len(queue._idle) <= 1024
