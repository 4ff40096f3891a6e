import pytest
from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, Storage
from limits.aio.strategies import FixedWindowRateLimiter

from gateway.rate_limit.memory_store import Counters, InProcessStore
from tests.unit.gateway.rate_limit.house import Clock, RuledStore, rules


async def refusals(store: RuledStore, count: int, subject: str = "a") -> list[str | None]:
    return [(await store.acquire(subject, str(number))).refused for number in range(count)]


async def test_a_limit_of_n_lets_n_in() -> None:
    store = RuledStore(InProcessStore(Clock()), rules(requests="3/minute"))
    assert await refusals(store, 5) == [None, None, None, "requests", "requests"]


async def test_a_window_begins_with_its_first_request_and_ends_as_long_after() -> None:
    clock = Clock()
    store = RuledStore(InProcessStore(clock), rules(requests="2/minute"))
    assert (await store.acquire("a", "1")).requests == (1, 60)
    clock.now += 59.5
    assert (await store.acquire("a", "2")).requests == (2, 1)
    assert (await store.acquire("a", "3")).refused == "requests"
    clock.now += 0.5
    assert (await store.acquire("a", "4")).requests == (1, 60)


async def test_subjects_do_not_count_for_each_other() -> None:
    store = RuledStore(InProcessStore(Clock()), rules(requests="1/minute", concurrency=1))
    assert await refusals(store, 2, "a") == [None, "requests"]
    assert await refusals(store, 1, "b") == [None]


async def test_what_was_refused_counts_nowhere() -> None:
    clock = Clock()
    store = RuledStore(InProcessStore(clock), rules(requests="2/minute", concurrency=1))
    assert await refusals(store, 3) == [None, "concurrency", "concurrency"]
    await store.release("a", "0", 0)
    assert await refusals(store, 1) == [None]


async def test_tokens_are_charged_before_they_are_queued() -> None:
    clock = Clock()
    store = RuledStore(InProcessStore(clock), rules(tokens="1000/minute"))
    assert (await store.acquire("a", "1")).tokens == (0, 60)
    assert (await store.reserve("a", 999)).tokens == (999, 60)
    # A caller that leaves is charged all the same.
    await store.release("a", "1", 0)
    assert (await store.acquire("a", "2")).tokens == (999, 60)
    clock.now += 60
    assert (await store.acquire("a", "3")).tokens == (0, 60)


async def test_requests_at_once_reserve_no_more_than_the_limit_and_a_batch() -> None:
    store = RuledStore(InProcessStore(Clock()), rules(tokens="3000/minute"))
    statuses = [await store.acquire("a", str(number)) for number in range(100)]
    assert {status.refused for status in statuses} == {None}
    statuses = [await store.reserve("a", 700) for _ in range(100)]
    assert [status.refused for status in statuses] == [None] * 5 + ["tokens"] * 95
    # Rejected tokens over a reached limit are charged nothing.
    assert statuses[-1].tokens == (3000, 60)
    assert (await store.acquire("a", "100")).refused == "tokens"
    assert (await store.reserve("b", 3513)).refused == "tokens"
    assert (await store.reserve("c", 3512)).refused is None


async def test_refused_tokens_are_charged_a_part_until_the_limit_is_reached() -> None:
    store = RuledStore(InProcessStore(Clock()), rules(tokens="3000/minute"))
    statuses = [await store.reserve("a", 131_072) for _ in range(4)]
    assert [status.refused for status in statuses] == ["tokens"] * 4
    assert [status.tokens for status in statuses] == [
        (1310, 60),
        (2620, 60),
        (3000, 60),
        (3000, 60),
    ]
    # The door refuses the next one before it is read.
    assert (await store.acquire("a", "1")).refused == "tokens"


async def test_what_is_given_back_may_be_reserved_again() -> None:
    store = RuledStore(InProcessStore(Clock()), rules(tokens="1000/minute"))
    await store.reserve("a", 1000)
    await store.release("a", "1", 400)
    assert (await store.acquire("a", "2")).tokens == (600, 60)
    # Never more than was charged.
    await store.release("a", "2", 700)
    assert (await store.acquire("a", "3")).tokens == (600, 60)


async def test_concurrency_is_what_has_not_left() -> None:
    store = RuledStore(InProcessStore(Clock()), rules(concurrency=2))
    assert await refusals(store, 3) == [None, None, "concurrency"]
    await store.release("a", "1", 0)
    # Once more, or by one that never entered, frees no other's place.
    await store.release("a", "1", 0)
    await store.release("a", "2", 0)
    assert (await store.acquire("a", "3")).refused is None
    assert (await store.acquire("a", "4")).refused == "concurrency"


async def test_idle_subjects_are_forgotten() -> None:
    clock = Clock()
    memory = InProcessStore(clock)
    store = RuledStore(memory, rules(requests="9/second", tokens="9/second", concurrency=9))
    for number in range(1000):
        await store.acquire(str(number), "1")
        await store.reserve(str(number), 1)
        await store.release(str(number), "1", 0)
    assert memory.size == 2000
    clock.now += 61
    await store.acquire("another", "1")
    assert memory.size == 2


@pytest.mark.parametrize("storage", [MemoryStorage(), Counters()])
async def test_our_counters_are_what_the_library_s_are(storage: Storage) -> None:
    strategy = FixedWindowRateLimiter(storage)
    item = RateLimitItemPerMinute(3)
    assert [await strategy.hit(item, "a") for _ in range(4)] == [True, True, True, False]
    assert not await strategy.test(item, "a")
    assert (await strategy.get_window_stats(item, "a")).remaining == 0
    await strategy.clear(item, "a")
    assert await strategy.hit(item, "a", cost=3)
    assert not await strategy.test(item, "a")
    assert await storage.reset() == 1
    assert await strategy.test(item, "a")
    assert await storage.check()
