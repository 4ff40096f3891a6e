import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter
from redis.asyncio import Redis

from gateway.rate_limit.redis_store import PREFIX, RedisStore, redis_address, redis_fault
from gateway.rate_limit.windows import Rules, StoreUnavailable
from tests.redis_server import RedisServer, redis_server
from tests.unit.gateway.rate_limit.house import RuledStore, rules


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
async def inspector(server: RedisServer) -> AsyncIterator[Redis]:
    """Return a client of an empty Redis."""
    async with Redis.from_url(server.url, decode_responses=True) as client:
        await client.flushall()
        yield client


class Pair:
    """Two workers that share a Redis."""

    def __init__(self, limits: Rules, url: str) -> None:
        self.first, self.second = (
            RuledStore(RedisStore(url, lease_s=35), limits) for _ in range(2)
        )

    async def acquire(self, count: int) -> list[str | None]:
        """Let each in turn let requests in, by leases from 0."""
        refusals = []
        for number in range(count):
            store = self.second if number % 2 else self.first
            refusals.append((await store.acquire("a", str(number))).refused)
        return refusals

    async def close(self) -> None:
        await self.first.close()
        await self.second.close()


async def test_a_limit_of_n_is_n_over_two_workers(server: RedisServer, inspector: Redis) -> None:
    pair = Pair(rules(requests="5/minute"), server.url)
    assert await pair.acquire(7) == [None] * 5 + ["requests"] * 2
    status = await pair.second.acquire("a", "9")
    assert status.requests is not None
    assert status.requests.used == 5
    assert 0 < status.requests.reset_s <= 60
    (key,) = await inspector.keys()
    await inspector.delete(key)
    assert await pair.acquire(1) == [None]
    await pair.close()


async def test_what_is_counted_is_what_the_library_counts(
    server: RedisServer, inspector: Redis
) -> None:
    limits = rules(requests="5/minute", tokens="100/hour")
    store = RuledStore(RedisStore(server.url, lease_s=35), limits)
    storage = RedisStorage(server.url, implementation="redispy", key_prefix=PREFIX)
    library_limiter = FixedWindowRateLimiter(storage)
    assert limits.requests is not None
    assert limits.tokens is not None
    await store.acquire("a", "1")
    await store.reserve("a", 40)
    await store.release("a", "1", 10)
    assert (await library_limiter.get_window_stats(limits.requests, "a")).remaining == 4
    assert (await library_limiter.get_window_stats(limits.tokens, "a")).remaining == 70
    await library_limiter.hit(limits.requests, "a", cost=4)
    assert (await store.acquire("a", "2")).refused == "requests"
    assert all([0 < await inspector.ttl(key) <= 3600 for key in await inspector.keys()])
    await store.close()
    await storage.bridge.get_connection().aclose()  # type: ignore[attr-defined]


async def test_tokens_are_charged_before_they_are_queued_over_two_workers(
    server: RedisServer, inspector: Redis
) -> None:
    pair = Pair(rules(tokens="3000/minute"), server.url)
    assert (await pair.first.acquire("a", "1")).tokens == (0, 60)
    stores = [pair.first, pair.second] * 50
    statuses = await asyncio.gather(*(store.reserve("a", 700) for store in stores))
    # The limit, and no more than a batch beyond it, however many ask at once.
    assert [status.refused for status in statuses].count(None) == 5
    await pair.first.release("a", "1", 0)
    refused = await pair.second.acquire("a", "2")
    assert (refused.refused, refused.tokens) == ("tokens", (3500, 60))
    await pair.first.release("a", "2", 700)
    assert (await pair.second.acquire("a", "3")).tokens == (2800, 60)
    await pair.close()


async def test_refused_tokens_are_charged_a_part_until_the_limit_is_reached(
    server: RedisServer, inspector: Redis
) -> None:
    pair = Pair(rules(tokens="3000/minute"), server.url)
    statuses = [await pair.first.reserve("a", 131_072) for _ in range(4)]
    assert [status.refused for status in statuses] == ["tokens"] * 4
    used = [status.tokens.used for status in statuses if status.tokens]
    assert used == [1310, 2620, 3000, 3000]
    assert (await pair.second.acquire("a", "1")).refused == "tokens"
    (key,) = await inspector.keys("*tokens/a*")
    assert 0 < await inspector.ttl(key) <= 60
    assert (await pair.first.reserve("b", 3513)).refused == "tokens"
    await pair.close()


async def test_concurrency_is_over_two_workers(server: RedisServer, inspector: Redis) -> None:
    pair = Pair(rules(requests="9/minute", concurrency=2), server.url)
    assert await pair.acquire(3) == [None, None, "concurrency"]
    await pair.second.release("a", "0", 0)
    await pair.second.release("a", "0", 0)
    status = await pair.first.acquire("a", "3")
    # Rejected requests count nowhere.
    assert (status.refused, status.requests and status.requests.used) == (None, 3)
    assert (await pair.first.acquire("a", "4")).refused == "concurrency"
    await pair.close()


async def test_two_plans_count_in_one_redis_by_their_own_limits(
    server: RedisServer, inspector: Redis
) -> None:
    store = RedisStore(server.url, lease_s=35)
    small = RuledStore(store, rules(requests="1/minute"))
    large = RuledStore(store, rules(tokens="1000/minute", concurrency=2))
    assert [(await small.acquire("a", lease)).refused for lease in "12"] == [None, "requests"]
    leases = [(await large.acquire("b", lease)).refused for lease in "123"]
    assert leases == [None, None, "concurrency"]
    assert (await large.reserve("b", 1000)).tokens == (1000, 60)
    await large.release("b", "1", 400)
    assert (await large.acquire("b", "3")).tokens == (600, 60)
    await store.close()


async def test_a_killed_workers_leases_end_by_themselves(
    server: RedisServer, inspector: Redis
) -> None:
    pair = Pair(rules(concurrency=2), server.url)
    assert await pair.acquire(3) == [None, None, "concurrency"]
    (key,) = await inspector.keys()
    assert 34 <= await inspector.ttl(key) <= 35
    # Neither lease is for longer.
    now_s, _ = await inspector.time()
    await inspector.zremrangebyscore(key, "-inf", now_s * 1000 + 36_000)
    assert await pair.acquire(2) == [None, None]
    # As if their time were over.
    await inspector.zadd(key, {"0": now_s * 1000 - 1})
    assert (await pair.second.acquire("a", "9")).refused is None
    assert (await pair.second.acquire("a", "10")).refused == "concurrency"
    await pair.close()


async def test_scripts_that_redis_has_forgotten_are_loaded_again(
    server: RedisServer, inspector: Redis
) -> None:
    store = RuledStore(RedisStore(server.url, lease_s=35), rules(requests="9/minute"))
    await store.acquire("a", "1")
    await inspector.script_flush()
    assert (await store.acquire("a", "2")).requests == (2, 60)
    await store.close()


@pytest.mark.parametrize("fault", ["full", "wrong type"])
async def test_a_redis_that_fails_is_unavailable(
    server: RedisServer, inspector: Redis, fault: str
) -> None:
    store = RuledStore(RedisStore(server.url, lease_s=35), rules(requests="9/minute"))
    await store.acquire("a", "1")
    if fault == "full":
        await inspector.config_set("maxmemory", "1")
    else:
        (key,) = await inspector.keys()
        await inspector.delete(key)
        await inspector.lpush(key, "x")
    with pytest.raises(StoreUnavailable):
        await store.acquire("a", "2")
    await inspector.config_set("maxmemory", "0")
    await store.close()


async def test_a_redis_that_hangs_is_unavailable_in_time(
    server: RedisServer, inspector: Redis
) -> None:
    store = RuledStore(RedisStore(server.url, lease_s=35), rules(requests="9/minute"))
    await store.acquire("a", "1")
    server.hang()
    with pytest.raises(StoreUnavailable, match="TimeoutError"):
        await store.acquire("a", "2")
    server.go_on()
    assert (await store.acquire("a", "3")).refused is None
    await store.close()


def test_whether_it_answers_is_reported_without_its_password() -> None:
    with redis_server(password="canary") as server:
        assert redis_fault(server.url) is None
        assert redis_fault(server.url.replace("canary", "other")) == "AuthenticationError"
        server.kill()
        assert redis_fault(server.url) == "ConnectionError"
    assert redis_address("rediss://user:canary@redis.example:7000/2") == "redis.example:7000"
    assert redis_address("redis://redis.example") == "redis.example:6379"
    assert redis_address("unix:///run/redis.sock") == "/run/redis.sock"
