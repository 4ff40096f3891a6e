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
    OVERDRAFT_TOKENS,
    REFUSED_SHARE,
    REQUESTS,
    TOKENS,
    Rules,
    Standing,
    StoreUnavailable,
    Window,
)

PREFIX = "kaiten:limits"
# For one call, its connection and the wait for a free one included. A busy event loop may look
# away for some hundred milliseconds, which is no fault of Redis.
_PATIENCE_S = 0.5
_CONNECTIONS = 16
_REFUSALS = (None, REQUESTS, TOKENS, CONCURRENCY)

# Each runs in Redis as one step. The counters are those of the library's fixed window: a number
# that ends its window after its first increment. The library's own storage would take five calls
# for what is one here. A call costs a worker 0.1 ms of CPU and more, each value that travels a part
# of it, so what never changes stands in the script. Time is Redis', as hosts differ.
_FIXED = """
local most_requests, requests_window_s = {requests}, {requests_window_s}
local most_tokens, tokens_window_s, overdraft = {tokens}, {tokens_window_s}, {overdraft}
local refused_share = {refused_share}
local most_leases, lease_ms = {concurrency}, {lease_ms}
"""
_ENTER = """
local requests, tokens, leases, lease = KEYS[1], KEYS[2], KEYS[3], ARGV[1]

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
        redis.call('EXPIRE', requests, requests_window_s)
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
return table.concat(standing, ' ')
"""
_RESERVE = """
local tokens, cost = KEYS[1], tonumber(ARGV[1])
local used, refused = tonumber(redis.call('GET', tokens) or 0), 0
if used >= most_tokens or used + cost > most_tokens + overdraft then
    refused = 2
    cost = math.max(0, math.min(math.floor(cost / refused_share), most_tokens - used))
end
if cost > 0 then
    used = redis.call('INCRBY', tokens, cost)
    if used == cost then
        redis.call('EXPIRE', tokens, tokens_window_s)
    end
end
return table.concat({refused, used, redis.call('PTTL', tokens)}, ' ')
"""
_LEAVE = """
local tokens, leases = KEYS[1], KEYS[2]
local lease, refund = ARGV[1], tonumber(ARGV[2])
redis.call('ZREM', leases, lease)
if refund > 0 and tonumber(redis.call('GET', tokens) or 0) >= refund then
    redis.call('DECRBY', tokens, refund)
end
return 0
"""


class InRedis:
    """The store of all who use one Redis.

    A lease ends by itself ``lease_s`` after it began: a worker that was killed gives none back.
    """

    def __init__(self, rules: Rules, url: str, lease_s: float) -> None:
        self._rules = rules
        # Who finds no connection free waits; the client's own pool for that costs more.
        self._free = asyncio.Semaphore(_CONNECTIONS)
        self._pool = redis.ConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            # One clock for all of a call, in _run.
            socket_timeout=None,
            socket_connect_timeout=None,
            # What fails is counted elsewhere, at once.
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        client = redis.Redis(connection_pool=self._pool)
        fixed = _FIXED.format(
            requests=_amount(rules.requests),
            requests_window_s=_window_s(rules.requests),
            tokens=_amount(rules.tokens),
            tokens_window_s=_window_s(rules.tokens),
            overdraft=OVERDRAFT_TOKENS,
            refused_share=REFUSED_SHARE,
            concurrency=rules.concurrency or 0,
            lease_ms=int(lease_s * 1000),
        )
        self._enter = client.register_script(fixed + _ENTER)
        self._reserve = client.register_script(fixed + _RESERVE)
        self._leave = client.register_script(fixed + _LEAVE)

    async def enter(self, subject: str, lease: str) -> Standing:
        """Let a request in and count it, or refuse it and count nothing."""
        rules = self._rules
        keys = (_key(rules.requests, subject), _key(rules.tokens, subject), _leases(subject))
        told = await self._run(self._enter, keys, (lease,))
        refused, *counts = map(int, told.split())
        return Standing(
            _REFUSALS[refused],
            _window(rules.requests, *counts[:2]),
            _window(rules.tokens, *counts[2:]),
        )

    async def reserve(self, subject: str, tokens: int) -> Standing:
        """Charge tokens before they are queued, or refuse them and charge a part."""
        item = self._rules.tokens
        answer = await self._run(self._reserve, (_key(item, subject),), (tokens,))
        refused, *counts = map(int, answer.split())
        return Standing(_REFUSALS[refused], None, _window(item, *counts))

    async def leave(self, subject: str, lease: str, refund: int) -> None:
        """End what entered by this lease, and give back tokens that were reserved."""
        returned = refund if self._rules.tokens else 0
        if returned or self._rules.concurrency:
            keys = (_key(self._rules.tokens, subject), _leases(subject))
            await self._run(self._leave, keys, (lease, returned))

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()

    async def _run(
        self, script: AsyncScript, keys: Sequence[str], args: Sequence[int | str]
    ) -> Any:  # noqa: ANN401  a script's answer
        try:
            async with asyncio.timeout(_PATIENCE_S), self._free:
                return await script(keys, args)
        except Exception as error:  # noqa: BLE001  whatever the client trips over, no request fails for it
            # A message may quote the address, and what is wrong with the password.
            raise StoreUnavailable(type(error).__name__) from None


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
