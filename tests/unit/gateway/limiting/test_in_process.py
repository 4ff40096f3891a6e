import pytest
from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, Storage
from limits.aio.strategies import FixedWindowRateLimiter

from gateway.limiting.in_process import Counters, InProcess
from tests.unit.gateway.limiting.house import Clock, rules


async def refusals(store: InProcess, count: int, subject: str = "a") -> list[str | None]:
    return [(await store.enter(subject, str(number))).refused for number in range(count)]


async def test_a_limit_of_n_lets_n_in() -> None:
    store = InProcess(rules(requests="3/minute"), Clock())
    assert await refusals(store, 5) == [None, None, None, "requests", "requests"]


async def test_a_window_begins_with_its_first_request_and_ends_as_long_after() -> None:
    clock = Clock()
    store = InProcess(rules(requests="2/minute"), clock)
    assert (await store.enter("a", "1")).requests == (1, 60)
    clock.now += 59.5
    assert (await store.enter("a", "2")).requests == (2, 1)
    assert (await store.enter("a", "3")).refused == "requests"
    clock.now += 0.5
    assert (await store.enter("a", "4")).requests == (1, 60)


async def test_subjects_do_not_count_for_each_other() -> None:
    store = InProcess(rules(requests="1/minute", concurrency=1), Clock())
    assert await refusals(store, 2, "a") == [None, "requests"]
    assert await refusals(store, 1, "b") == [None]


async def test_what_was_refused_counts_nowhere() -> None:
    clock = Clock()
    store = InProcess(rules(requests="2/minute", concurrency=1), clock)
    assert await refusals(store, 3) == [None, "concurrency", "concurrency"]
    await store.leave("a", "0", 0)
    assert await refusals(store, 1) == [None]


async def test_tokens_are_charged_after_and_checked_before() -> None:
    clock = Clock()
    store = InProcess(rules(tokens="100/minute"), clock)
    # Two at once may overdraw: what they will compute is not known yet.
    first, second = await store.enter("a", "1"), await store.enter("a", "2")
    assert first.tokens == second.tokens == (0, 60)
    await store.leave("a", "1", 99)
    assert (await store.enter("a", "3")).tokens == (99, 60)
    await store.leave("a", "2", 99)
    refused = await store.enter("a", "4")
    assert (refused.refused, refused.tokens) == ("tokens", (100, 60))
    clock.now += 60
    assert (await store.enter("a", "5")).refused is None


async def test_concurrency_is_what_has_not_left() -> None:
    store = InProcess(rules(concurrency=2), Clock())
    assert await refusals(store, 3) == [None, None, "concurrency"]
    await store.leave("a", "1", 0)
    # Once more, or by one that never entered, frees no other's place.
    await store.leave("a", "1", 0)
    await store.leave("a", "2", 0)
    assert (await store.enter("a", "3")).refused is None
    assert (await store.enter("a", "4")).refused == "concurrency"


async def test_idle_subjects_are_forgotten() -> None:
    clock = Clock()
    store = InProcess(rules(requests="9/second", tokens="9/second", concurrency=9), clock)
    for number in range(1000):
        await store.enter(str(number), "1")
        await store.leave(str(number), "1", 1)
    assert store.size == 2000
    clock.now += 61
    await store.enter("another", "1")
    assert store.size == 2


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
