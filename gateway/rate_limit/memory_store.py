"""The limits store of one process: it counts in memory and shares nothing."""

import math
import time
from collections.abc import Callable
from typing import ClassVar

from limits import RateLimitItem
from limits.aio.storage import Storage
from limits.aio.strategies import FixedWindowRateLimiter

from gateway.rate_limit.windows import (
    CONCURRENCY,
    OVERDRAFT_TOKENS,
    REFUSED_SHARE,
    REQUESTS,
    TOKENS,
    LimitedSubject,
    LimitStatus,
    Window,
)

Clock = Callable[[], float]
_SWEEP_S = 60


class Counters(Storage):
    """In-memory storage for ``limits`` whose cost does not grow with the number of subjects.

    The library's MemoryStorage walks through all counters at every hit: 1 ms of CPU with 10,000.
    This one drops counters of ended windows once a minute.
    """

    STORAGE_SCHEME: ClassVar[list[str] | None] = None  # type: ignore[misc]

    def __init__(self, clock: Clock = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        # By key: the count, and when its window ends.
        self._counters: dict[str, tuple[int, float]] = {}
        self._next_sweep = clock() + _SWEEP_S

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        now = self._clock()
        count, ends = self._counters.get(key, (0, now))
        if ends <= now:
            self._sweep(now)
            count, ends = 0, now + expiry
        self._counters[key] = (count + amount, ends)
        return count + amount

    def decrease(self, key: str, amount: int) -> None:
        """Subtract from a counter that holds at least this amount."""
        count, ends = self._counters.get(key, (0, 0.0))
        if count >= amount:
            self._counters[key] = (count - amount, ends)

    async def get(self, key: str) -> int:
        count, ends = self._counters.get(key, (0, 0.0))
        return count if ends > self._clock() else 0

    async def get_expiry(self, key: str) -> float:
        now = self._clock()
        return max(now, self._counters.get(key, (0, now))[1])

    async def check(self) -> bool:
        return True

    async def reset(self) -> int | None:
        count = len(self._counters)
        self._counters.clear()
        return count

    async def clear(self, key: str) -> None:
        self._counters.pop(key, None)

    def __len__(self) -> int:
        return len(self._counters)

    def _sweep(self, now: float) -> None:
        if now < self._next_sweep:
            return
        self._next_sweep = now + _SWEEP_S
        self._counters = {key: entry for key, entry in self._counters.items() if entry[1] > now}


class InProcessStore:
    """The store of one worker. No method suspends, so each is atomic on the event loop."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._counters = Counters(clock)
        self._windows = FixedWindowRateLimiter(self._counters)
        # By the subject's digest.
        self._leases: dict[str, set[str]] = {}

    async def acquire(self, subject: LimitedSubject, lease: str) -> LimitStatus:
        """Admit and count a request, or refuse it and count nothing."""
        digest, rules = subject
        refused = await self._refused(subject)
        if refused is None:
            if rules.requests:
                await self._windows.hit(rules.requests, digest)
            if rules.concurrency:
                self._leases.setdefault(digest, set()).add(lease)
        requests = await self._window(rules.requests, digest)
        return LimitStatus(refused, requests, await self._window(rules.tokens, digest))

    async def reserve(self, subject: LimitedSubject, tokens: int) -> LimitStatus:
        """Charge tokens before they are queued, or refuse them and charge a part of them."""
        digest, item, refused = subject.digest, subject.rules.tokens, None
        if item is not None:
            used = await self._counters.get(item.key_for(digest))
            charged = tokens
            if used >= item.amount or used + tokens > item.amount + OVERDRAFT_TOKENS:
                refused = TOKENS
                charged = min(tokens // REFUSED_SHARE, max(0, item.amount - used))
            await self._windows.hit(item, digest, cost=charged)
        return LimitStatus(refused, None, await self._window(item, digest))

    async def release(self, subject: LimitedSubject, lease: str, refund: int) -> None:
        """End the lease, and refund reserved tokens."""
        digest, rules = subject
        if leases := self._leases.get(digest):
            leases.discard(lease)
            if not leases:
                del self._leases[digest]
        if rules.tokens and refund:
            self._counters.decrease(rules.tokens.key_for(digest), refund)

    async def close(self) -> None:
        """Do nothing: there are no connections."""

    @property
    def size(self) -> int:
        """The number of counters and of subjects with open leases."""
        return len(self._counters) + len(self._leases)

    async def _refused(self, subject: LimitedSubject) -> str | None:
        digest, rules = subject
        if rules.requests and not await self._windows.test(rules.requests, digest):
            return REQUESTS
        if rules.tokens and not await self._windows.test(rules.tokens, digest):
            return TOKENS
        if rules.concurrency and len(self._leases.get(digest, ())) >= rules.concurrency:
            return CONCURRENCY
        return None

    async def _window(self, item: RateLimitItem | None, digest: str) -> Window | None:
        if item is None:
            return None
        stats = await self._windows.get_window_stats(item, digest)
        reset_s = math.ceil(stats.reset_time - self._clock())
        # Without a counter, the window begins with the next counted request.
        return Window(item.amount - stats.remaining, reset_s or item.get_expiry())
