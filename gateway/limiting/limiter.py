"""Lets requests in by the shared store, or by this process's own while that one is away."""

import asyncio
import math
import secrets
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import count

import structlog

from gateway.limiting.in_process import InProcess
from gateway.limiting.rules import Headers, Rules, Standing, Store, StoreUnavailable
from gateway.ports import LimitsWatch
from kaiten.pseudonyms import digest_of
from kaiten.sections import Limits, State

logger = structlog.get_logger(__name__)
# The shared store is asked again after RETRY_S; if it fails within _STEADY_S of being found, after
# twice as long each time, up to MAX_RETRY_S. So is the wait between lines of the log.
RETRY_S, MAX_RETRY_S, _STEADY_S = 2, 60, 120
# One that takes longer than this to answer is not used again, as it would be lost at once.
_SLOW_S = 0.25
# A request is answered by its deadline; this is for the way back.
_LEASE_MARGIN_S = 5
_MAX_LEFT_BEHIND = 1024


class Limiter:
    """Counts each subject's requests, tokens and requests under way.

    Where the shared store fails, each worker goes by limits of the same size that it counts by
    itself, and asks the shared one again, by one request, after RETRY_S seconds or more. No request
    fails for it.
    """

    def __init__(
        self,
        rules: Rules,
        own: Store,
        shared: Store | None,
        watch: LimitsWatch,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rules = rules
        self.watch = watch
        self._own = own
        self._shared = shared
        self._clock = clock
        self._degraded = False
        self._retry_at = self._next_line = clock()
        self._pause_s = self._line_pause_s = RETRY_S
        self._found_at = -math.inf
        # What the shared store may hold as under way, and was not told the end of.
        self._left_behind: deque[tuple[str, str]] = deque(maxlen=_MAX_LEFT_BEHIND)
        self._settling: asyncio.Task[None] | None = None
        # No other worker, here or elsewhere, takes the same.
        self._lease_prefix = secrets.token_hex(8)
        self._numbers = count()
        if shared is not None:
            watch.limits_degraded(degraded=False)

    def visit(self, identity: str) -> "Visit":
        """Return a request of a subject that stands before the door."""
        lease = f"{self._lease_prefix}{next(self._numbers):x}"
        return Visit(self, digest_of(identity), lease)

    async def enter(self, subject: str, lease: str) -> tuple[Store, Standing]:
        """Return who counted, and where the subject stands."""
        probing = self._degraded
        shared = self._shared_or_none()
        if shared is not None:
            asked_at = self._clock()
            try:
                standing = await shared.enter(subject, lease)
            except StoreUnavailable as error:
                self._left_behind.append((subject, lease))
                self._lost(error)
            except asyncio.CancelledError:
                with suppress(StoreUnavailable):
                    await shared.leave(subject, lease, 0)
                raise
            else:
                # What was asked before the store was lost says nothing of it now.
                if probing and self._clock() - asked_at > _SLOW_S:
                    self._lost(StoreUnavailable("slow"))
                elif probing:
                    self._found()
                return shared, standing
        return self._own, await self._own.enter(subject, lease)

    async def reserve(self, store: Store, subject: str, tokens: int) -> tuple[Store, Standing]:
        """Return who charged the tokens, or refused them, and where the subject stands."""
        if store is self._shared and not self._degraded:
            try:
                return store, await store.reserve(subject, tokens)
            except StoreUnavailable as error:
                self._lost(error)
        return self._own, await self._own.reserve(subject, tokens)

    async def leave(self, store: Store, subject: str, lease: str) -> None:
        """Tell the store that counted the request that it has ended."""
        if store is self._shared and not self._degraded:
            try:
                await store.leave(subject, lease, 0)
            except StoreUnavailable as error:
                self._lost(error)
            else:
                return
        if store is self._shared:
            self._left_behind.append((subject, lease))
        await self._own.leave(subject, lease, 0)

    async def refund(self, store: Store, subject: str, lease: str, tokens: int) -> None:
        """Give back tokens that were reserved, if the store that charged them answers."""
        if store is self._own or not self._degraded:
            try:
                await store.leave(subject, lease, tokens)
            except StoreUnavailable as error:
                self._lost(error)

    async def close(self) -> None:
        """Close the stores."""
        if self._settling is not None:
            self._settling.cancel()
        for store in (self._own, self._shared):
            if store is not None:
                await store.close()

    def _shared_or_none(self) -> Store | None:
        """Return the shared store, if there is one to ask now; of many that wait, one tries."""
        if self._degraded:
            now = self._clock()
            if now < self._retry_at:
                return None
            self._retry_at = now + self._pause_s
        return self._shared

    def _lost(self, error: StoreUnavailable) -> None:
        now = self._clock()
        if not self._degraded:
            self._degraded = True
            self.watch.limits_degraded(degraded=True)
            relapsed = now - self._found_at < _STEADY_S
            self._pause_s = min(2 * self._pause_s, MAX_RETRY_S) if relapsed else RETRY_S
            if not relapsed:
                self._line_pause_s = RETRY_S
        self._retry_at = now + self._pause_s
        if now >= self._next_line:
            logger.warning("limits_degraded", fault=str(error), retry_s=self._pause_s)
            self._next_line = now + self._line_pause_s
            self._line_pause_s = min(2 * self._line_pause_s, MAX_RETRY_S)

    def _found(self) -> None:
        if self._degraded:
            self._degraded = False
            self._found_at = self._clock()
            self.watch.limits_degraded(degraded=False)
            logger.info("limits_shared_again")
            self._settling = asyncio.create_task(self._settle())

    async def _settle(self) -> None:
        """Give back what was left behind; what is not ends by itself."""
        with suppress(StoreUnavailable):
            while self._left_behind and self._shared is not None:
                await self._shared.leave(*self._left_behind.popleft(), 0)


class Visit:
    """One request, from the door until it leaves."""

    def __init__(self, limiter: Limiter, subject: str, lease: str) -> None:
        self._limiter = limiter
        self._subject = subject
        self._lease = lease
        self.left = False
        self._store: Store | None = None
        self._standing: Standing | None = None
        # Who charged how many tokens, and until when their window lasts, by time.monotonic().
        self._reserved: tuple[Store, int, float] | None = None

    async def enter(self) -> None:
        """Go in; RateLimited or TooManyConcurrent."""
        store, self._standing = await self._limiter.enter(self._subject, self._lease)
        self._refuse_if_told()
        self._store = store

    async def reserve(self, tokens: int) -> None:
        """Charge the tokens of what is about to be queued; RateLimited where they are too many.

        InvalidInput if they are more than any window has room for.

        What is queued is charged, whatever becomes of the caller.
        """
        if self._store is None or self._standing is None or not self._limiter.rules.tokens:
            return
        asked_at = time.monotonic()
        store, standing = await self._limiter.reserve(self._store, self._subject, tokens)
        self._standing = self._standing._replace(refused=standing.refused, tokens=standing.tokens)
        if standing.refused and (oversized := self._limiter.rules.oversized(tokens)):
            raise oversized
        self._refuse_if_told()
        if standing.tokens is not None:
            # The store rounds the seconds of the window up.
            self._reserved = store, tokens, asked_at + standing.tokens.reset_s - 1

    async def leave(self, *, computed: bool = True) -> None:
        """End the request, once; a request that was refused has nothing to end.

        Unless something was ``computed``, or its window has ended, what was charged is given back.
        """
        self.left = True
        if self._store is None:
            return
        if self._reserved is not None and not computed:
            store, tokens, until = self._reserved
            if time.monotonic() < until:
                await self._limiter.refund(store, self._subject, self._lease, tokens)
                self._give_back(tokens)
        await self._limiter.leave(self._store, self._subject, self._lease)

    def headers(self) -> Headers:
        """Return what the caller is told of its limits."""
        if self._standing is None:
            return []
        return self._limiter.rules.headers(self._standing)

    def _refuse_if_told(self) -> None:
        standing = self._standing
        if standing is not None and standing.refused is not None:
            self._limiter.watch.request_limited(standing.refused)
            raise self._limiter.rules.refusal(standing)

    def _give_back(self, tokens: int) -> None:
        if self._standing is not None and self._standing.tokens is not None:
            window = self._standing.tokens
            window = window._replace(used=max(0, window.used - tokens))
            self._standing = self._standing._replace(tokens=window)


def limiter_for(
    limits: Limits, state: State, request_timeout_s: float, watch: LimitsWatch
) -> Limiter | None:
    """Return what the settings ask for; None where every limit is off."""
    if not (limits.requests or limits.tokens or limits.concurrency):
        return None
    rules, shared = Rules(limits), None
    if state.redis_url is not None:
        # Who shares no Redis loads none.
        from gateway.limiting.in_redis import InRedis  # noqa: PLC0415

        url = state.redis_url.get_secret_value()
        shared = InRedis(rules, url, request_timeout_s + _LEASE_MARGIN_S)
    return Limiter(rules, InProcess(rules), shared, watch)
