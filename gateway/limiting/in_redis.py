"""Counts in Redis, for all workers and replicas that share it."""

import asyncio
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from limits import RateLimitItem
from redis import Redis
from redis import asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from gateway.limiting.rules import (
    CONCURRENCY,
    REQUESTS,
    TOKENS,
    Rules,
    Standing,
    StoreUnavailable,
    Window,
)

PREFIX = "kaiten:limits"
# For one call, its connection and the wait for a free one included. A busy event loop may look
# away for some tens of milliseconds, which is no fault of Redis.
_PATIENCE_S = 0.25
_CONNECTIONS = 16
_REFUSALS = (None, REQUESTS, TOKENS, CONCURRENCY)

# Both run in Redis as one step. The counters are those of the library's fixed window: a number
# that ends its window after its first increment. The library's own storage would take five calls
# for what is one here; a call costs a worker some 0.1 ms of CPU. Time is Redis', as hosts differ.
_ENTER = """
local requests, tokens, leases = KEYS[1], KEYS[2], KEYS[3]
local most_requests, window_s = tonumber(ARGV[1]), tonumber(ARGV[2])
local most_tokens, most_leases = tonumber(ARGV[3]), tonumber(ARGV[4])
local lease, lease_ms = ARGV[5], tonumber(ARGV[6])

local function used(key)
    return tonumber(redis.call('GET', key) or 0)
end

local now_ms = 0
if most_leases > 0 then
    local time = redis.call('TIME')
    now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
    redis.call('ZREMRANGEBYSCORE', leases, '-inf', now_ms)
end

local refused = 0
if most_requests > 0 and used(requests) >= most_requests then
    refused = 1
elseif most_tokens > 0 and used(tokens) >= most_tokens then
    refused = 2
elseif most_leases > 0 and redis.call('ZCARD', leases) >= most_leases then
    refused = 3
else
    if most_requests > 0 and redis.call('INCRBY', requests, 1) == 1 then
        redis.call('EXPIRE', requests, window_s)
    end
    if most_leases > 0 then
        redis.call('ZADD', leases, now_ms + lease_ms, lease)
        redis.call('PEXPIRE', leases, lease_ms)
    end
end

local standing = {refused, 0, -1, 0, -1}
if most_requests > 0 then
    standing[2], standing[3] = used(requests), redis.call('PTTL', requests)
end
if most_tokens > 0 then
    standing[4], standing[5] = used(tokens), redis.call('PTTL', tokens)
end
return standing
"""
_LEAVE = """
local tokens, leases = KEYS[1], KEYS[2]
local computed, window_s, lease = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
redis.call('ZREM', leases, lease)
if computed > 0 and redis.call('INCRBY', tokens, computed) == computed then
    redis.call('EXPIRE', tokens, window_s)
end
return 0
"""


class InRedis:
    """The store of all who use one Redis.

    A lease ends by itself ``lease_s`` after it began: a worker that was killed gives none back.
    """

    def __init__(self, rules: Rules, url: str, lease_s: float) -> None:
        self._rules = rules
        self._lease_ms = int(lease_s * 1000)
        self._pool = redis.BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            # One clock for all of a call, in _run.
            timeout=None,
            socket_timeout=None,
            socket_connect_timeout=None,
            # What fails is counted elsewhere, at once.
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        client = redis.Redis(connection_pool=self._pool)
        self._enter = client.register_script(_ENTER)
        self._leave = client.register_script(_LEAVE)

    async def enter(self, subject: str, lease: str) -> Standing:
        """Let a request in and count it, or refuse it and count nothing."""
        rules = self._rules
        keys = (_key(rules.requests, subject), _key(rules.tokens, subject), _leases(subject))
        limits = (_amount(rules.requests), _window_s(rules.requests), _amount(rules.tokens))
        args = (*limits, rules.concurrency or 0, lease, self._lease_ms)
        refused, *counts = await _run(self._enter, keys, args)
        return Standing(
            _REFUSALS[refused],
            _window(rules.requests, *counts[:2]),
            _window(rules.tokens, *counts[2:]),
        )

    async def leave(self, subject: str, lease: str, tokens: int) -> None:
        """End what entered by this lease, and charge the tokens."""
        charged = tokens if self._rules.tokens else 0
        if charged or self._rules.concurrency:
            keys = (_key(self._rules.tokens, subject), _leases(subject))
            await _run(self._leave, keys, (charged, _window_s(self._rules.tokens), lease))

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()


def place_of(url: str) -> str:
    """Return where a Redis is, without its password."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else parts.path


def fault_of(url: str) -> str | None:
    """Return why a Redis does not answer, in a word, or None where it does."""
    try:
        with Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1) as client:
            client.ping()
    except (RedisError, OSError) as error:
        return type(error).__name__
    return None


async def _run(script: AsyncScript, keys: Sequence[str], args: Sequence[int | str]) -> Any:  # noqa: ANN401  a script's answer
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return await script(keys, args)
    except (RedisError, OSError) as error:
        # A message may quote the address, and what is wrong with the password.
        raise StoreUnavailable(type(error).__name__) from None


def _key(item: RateLimitItem | None, subject: str) -> str:
    """Return the key that the library's own storage would count under."""
    return f"{PREFIX}:{item.key_for(subject)}" if item else ""


def _leases(subject: str) -> str:
    return f"{PREFIX}:{CONCURRENCY}/{subject}"


def _amount(item: RateLimitItem | None) -> int:
    return item.amount if item else 0


def _window_s(item: RateLimitItem | None) -> int:
    return item.get_expiry() if item else 0


def _window(item: RateLimitItem | None, used: int, reset_ms: int) -> Window | None:
    if item is None:
        return None
    return Window(used, -(-reset_ms // 1000) if reset_ms > 0 else item.get_expiry())
