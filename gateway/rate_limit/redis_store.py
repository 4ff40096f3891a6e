"""The limits store in Redis, for all workers and replicas that share it."""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from limits import RateLimitItem
from redis import Redis
from redis import asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from gateway.rate_limit.windows import (
    CONCURRENCY,
    OVERDRAFT_TOKENS,
    REFUSED_SHARE,
    REQUESTS,
    TOKENS,
    LimitedSubject,
    LimitStatus,
    Rules,
    StoreUnavailable,
    Window,
)

PREFIX = "kaiten:limits"
# For one call, including connecting and waiting for a free connection. A busy event loop may itself
# be late by a few hundred milliseconds.
_TIMEOUT_S = 0.5
_CONNECTIONS = 16
_REFUSALS = (None, REQUESTS, TOKENS, CONCURRENCY)

# Redis runs each script atomically. A counter is that of the library's fixed window: a number whose
# expiry is set by its first increment. The library's own storage would make five calls instead of
# one. A call costs a worker at least 0.1 ms of CPU and each argument adds to that, so constants are
# written into the script. The clock is that of Redis, because the clocks of hosts differ.
_FIXED = """
local most_requests, requests_window_s = {requests}, {requests_window_s}
local most_tokens, tokens_window_s, overdraft = {tokens}, {tokens_window_s}, {overdraft}
local refused_share = {refused_share}
local most_leases, lease_ms = {concurrency}, {lease_ms}
"""
_ACQUIRE = """
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

local status = {refused, 0, -1, 0, -1}
if most_requests > 0 then
    status[2], status[3] = used(requests), redis.call('PTTL', requests)
end
if most_tokens > 0 then
    status[4], status[5] = used(tokens), redis.call('PTTL', tokens)
end
return table.concat(status, ' ')
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
_RELEASE = """
local tokens, leases = KEYS[1], KEYS[2]
local lease, refund = ARGV[1], tonumber(ARGV[2])
redis.call('ZREM', leases, lease)
if refund > 0 and tonumber(redis.call('GET', tokens) or 0) >= refund then
    redis.call('DECRBY', tokens, refund)
end
return 0
"""


class _Scripts(NamedTuple):
    """The scripts with one plan's rules written into them."""

    acquire: AsyncScript
    reserve: AsyncScript
    release: AsyncScript


class RedisStore:
    """The store of all workers that use one Redis.

    A lease expires ``lease_s`` after it began, because a worker that was killed releases none.
    """

    def __init__(self, url: str, lease_s: float) -> None:
        self._lease_ms = int(lease_s * 1000)
        # Callers wait here for a free connection: the client's blocking pool costs more.
        self._free = asyncio.Semaphore(_CONNECTIONS)
        self._pool = redis.ConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            # _run has one timeout for the whole call.
            socket_timeout=None,
            socket_connect_timeout=None,
            # After a failure the limiter counts in this process at once.
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        self._client = redis.Redis(connection_pool=self._pool)
        # One entry for each plan that is in use.
        self._scripts: dict[Rules, _Scripts] = {}

    async def acquire(self, subject: LimitedSubject, lease: str) -> LimitStatus:
        """Admit and count a request, or refuse it and count nothing."""
        digest, rules = subject
        keys = (_key(rules.requests, digest), _key(rules.tokens, digest), _leases(digest))
        reply = await self._run(self._scripts_for(rules).acquire, keys, (lease,))
        refused, *counts = map(int, reply.split())
        return LimitStatus(
            _REFUSALS[refused],
            _window(rules.requests, *counts[:2]),
            _window(rules.tokens, *counts[2:]),
        )

    async def reserve(self, subject: LimitedSubject, tokens: int) -> LimitStatus:
        """Charge tokens before they are queued, or refuse them and charge a part."""
        item, script = subject.rules.tokens, self._scripts_for(subject.rules).reserve
        reply = await self._run(script, (_key(item, subject.digest),), (tokens,))
        refused, *counts = map(int, reply.split())
        return LimitStatus(_REFUSALS[refused], None, _window(item, *counts))

    async def release(self, subject: LimitedSubject, lease: str, refund: int) -> None:
        """End the lease, and refund reserved tokens."""
        digest, rules = subject
        refund = refund if rules.tokens else 0
        if refund or rules.concurrency:
            keys = (_key(rules.tokens, digest), _leases(digest))
            await self._run(self._scripts_for(rules).release, keys, (lease, refund))

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()

    def _scripts_for(self, rules: Rules) -> _Scripts:
        scripts = self._scripts.get(rules)
        if scripts is None:
            fixed = _FIXED.format(
                requests=_amount(rules.requests),
                requests_window_s=_window_s(rules.requests),
                tokens=_amount(rules.tokens),
                tokens_window_s=_window_s(rules.tokens),
                overdraft=OVERDRAFT_TOKENS,
                refused_share=REFUSED_SHARE,
                concurrency=rules.concurrency or 0,
                lease_ms=self._lease_ms,
            )
            register = self._client.register_script
            scripts = _Scripts(
                register(fixed + _ACQUIRE), register(fixed + _RESERVE), register(fixed + _RELEASE)
            )
            self._scripts[rules] = scripts
        return scripts

    async def _run(
        self, script: AsyncScript, keys: Sequence[str], args: Sequence[int | str]
    ) -> Any:  # noqa: ANN401  a script's reply
        try:
            async with asyncio.timeout(_TIMEOUT_S), self._free:
                return await script(keys, args)
        except Exception as error:  # noqa: BLE001  no request fails with the client
            # The message may quote the address and the password.
            raise StoreUnavailable(type(error).__name__) from None


def redis_address(url: str) -> str:
    """Return the host and port, or the socket path, of a Redis URL without its password."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else parts.path


def redis_fault(url: str) -> str | None:
    """Return the kind of fault if a Redis does not answer, None if it does."""
    try:
        with Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1) as client:
            client.ping()
    except (RedisError, OSError) as error:
        return type(error).__name__
    return None


def _key(item: RateLimitItem | None, digest: str) -> str:
    """Return the key under which the library's own storage would count."""
    return f"{PREFIX}:{item.key_for(digest)}" if item else ""


def _leases(digest: str) -> str:
    return f"{PREFIX}:{CONCURRENCY}/{digest}"


def _amount(item: RateLimitItem | None) -> int:
    return item.amount if item else 0


def _window_s(item: RateLimitItem | None) -> int:
    return item.get_expiry() if item else 0


def _window(item: RateLimitItem | None, used: int, reset_ms: int) -> Window | None:
    if item is None:
        return None
    return Window(used, -(-reset_ms // 1000) if reset_ms > 0 else item.get_expiry())
