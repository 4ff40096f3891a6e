"""Lets requests in by the shared store, or by this process's own while that one is away."""

import asyncio
import hashlib
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
from kaiten.sections import Limits, State

logger = structlog.get_logger(__name__)
RETRY_S = 2
# A request is answered by its deadline; this is for the way back.
_LEASE_MARGIN_S = 5
_DIGEST_CHARS = 32
_MAX_LEFT_BEHIND = 1024


class Limiter:
    """Counts each subject's requests, tokens and requests under way.

    Where the shared store fails, each worker goes by limits of the same size that it counts by
    itself, and asks the shared one again every RETRY_S seconds. No request fails for it.
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
        digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()
        lease = f"{self._lease_prefix}{next(self._numbers):x}"
        return Visit(self, digest[:_DIGEST_CHARS], lease)

    async def enter(self, subject: str, lease: str) -> tuple[Store, Standing]:
        """Return who counted, and where the subject stands."""
        shared = self._shared_or_none()
        if shared is not None:
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
                self._found()
                return shared, standing
        return self._own, await self._own.enter(subject, lease)

    async def leave(self, store: Store, subject: str, lease: str, tokens: int) -> None:
        """Tell whoever counted the request that it has ended, and what it computed."""
        if store is self._shared and not self._degraded:
            try:
                await store.leave(subject, lease, tokens)
            except StoreUnavailable as error:
                self._lost(error)
            else:
                return
        if store is self._shared:
            self._left_behind.append((subject, lease))
        await self._own.leave(subject, lease, tokens)

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
            self._retry_at = now + RETRY_S
        return self._shared

    def _lost(self, error: StoreUnavailable) -> None:
        now = self._clock()
        self._retry_at = now + RETRY_S
        if not self._degraded:
            self._degraded = True
            self.watch.limits_degraded(degraded=True)
        if now >= self._next_line:
            self._next_line = now + RETRY_S
            logger.warning("limits_degraded", fault=str(error), retry_s=RETRY_S)

    def _found(self) -> None:
        if self._degraded:
            self._degraded = False
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
        self._tokens = 0

    async def enter(self) -> None:
        """Go in; RateLimited or TooManyConcurrent."""
        store, self._standing = await self._limiter.enter(self._subject, self._lease)
        if self._standing.refused is not None:
            self._limiter.watch.request_limited(self._standing.refused)
            raise self._limiter.rules.refusal(self._standing)
        self._store = store

    async def leave(self, tokens: int) -> None:
        """Go, after computing so many tokens, once; nobody else is told if it was not let in."""
        self.left = True
        if self._store is not None:
            self._tokens = tokens
            await self._limiter.leave(self._store, self._subject, self._lease, tokens)

    def headers(self) -> Headers:
        """Return what the caller is told of its limits."""
        if self._standing is None:
            return []
        return self._limiter.rules.headers(self._standing, self._tokens)


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
