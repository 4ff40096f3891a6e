"""Limits requests by the shared store, or by this process's own while that one is unavailable."""

import asyncio
import math
import secrets
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import count

import structlog

from gateway.interfaces import GatewayMetrics
from gateway.rate_limit.memory_store import InProcessStore
from gateway.rate_limit.windows import (
    Headers,
    LimitedSubject,
    LimitStatus,
    Store,
    StoreUnavailable,
    SubjectRules,
)
from kaiten.settings.models import RateLimitSettings, StateSettings

logger = structlog.get_logger(__name__)
# The shared store is retried after RETRY_S. If it fails again within _STEADY_S of its recovery, the
# pause doubles, up to MAX_RETRY_S. The pause between log lines doubles in the same way.
RETRY_S, MAX_RETRY_S, _STEADY_S = 2, 60, 120
# A store that answers a probe more slowly than this stays unused: it would soon fail again.
_SLOW_S = 0.25
# A request is answered by its deadline; the margin is for sending the answer.
_LEASE_MARGIN_S = 5
_MAX_UNRELEASED = 1024


class Limiter:
    """Counts each subject's requests, tokens and concurrent requests.

    While the shared store is unavailable, each worker counts by itself, with limits of the same
    size, and one request at a time probes the shared store, after RETRY_S seconds or more. No
    request fails because the store does.
    """

    def __init__(
        self,
        rules: SubjectRules,
        local: Store,
        shared: Store | None,
        metrics: GatewayMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rules = rules
        self.metrics = metrics
        self._local = local
        self._shared = shared
        self._clock = clock
        self._degraded = False
        self._retry_at = self._next_line = clock()
        self._pause_s = self._line_pause_s = RETRY_S
        self._recovered_at = -math.inf
        # Leases that the shared store may still hold because it did not hear of their end.
        self._unreleased: deque[tuple[LimitedSubject, str]] = deque(maxlen=_MAX_UNRELEASED)
        self._settling: asyncio.Task[None] | None = None
        # Unique to this worker among all hosts.
        self._lease_prefix = secrets.token_hex(8)
        self._numbers = count()
        if shared is not None:
            metrics.limits_degraded(degraded=False)

    def request(self, identity: str) -> "LimitedRequest | None":
        """Return a subject's request, which has yet to acquire a lease; None without limits."""
        subject = self._rules.subject(identity)
        if subject.rules.unlimited:
            return None
        lease = f"{self._lease_prefix}{next(self._numbers):x}"
        return LimitedRequest(self, subject, lease)

    async def acquire(self, subject: LimitedSubject, lease: str) -> tuple[Store, LimitStatus]:
        """Return the store that counted the request, and the subject's status."""
        probing = self._degraded
        shared = self._shared_or_none()
        if shared is not None:
            asked_at = self._clock()
            try:
                status = await shared.acquire(subject, lease)
            except StoreUnavailable as error:
                self._unreleased.append((subject, lease))
                self._degrade(error)
            except asyncio.CancelledError:
                with suppress(StoreUnavailable):
                    await shared.release(subject, lease, 0)
                raise
            else:
                # Only a probe tells: a call from before the failure says nothing of now.
                if probing and self._clock() - asked_at > _SLOW_S:
                    self._degrade(StoreUnavailable("slow"))
                elif probing:
                    self._recover()
                return shared, status
        return self._local, await self._local.acquire(subject, lease)

    async def reserve(
        self, store: Store, subject: LimitedSubject, tokens: int
    ) -> tuple[Store, LimitStatus]:
        """Return the store that charged or refused the tokens, and the subject's status."""
        if store is self._shared and not self._degraded:
            try:
                return store, await store.reserve(subject, tokens)
            except StoreUnavailable as error:
                self._degrade(error)
        return self._local, await self._local.reserve(subject, tokens)

    async def release(self, store: Store, subject: LimitedSubject, lease: str) -> None:
        """Tell the store that counted the request that it has ended."""
        if store is self._shared and not self._degraded:
            try:
                await store.release(subject, lease, 0)
            except StoreUnavailable as error:
                self._degrade(error)
            else:
                return
        if store is self._shared:
            self._unreleased.append((subject, lease))
        await self._local.release(subject, lease, 0)

    async def refund(self, store: Store, subject: LimitedSubject, lease: str, tokens: int) -> None:
        """Refund reserved tokens, if the store that charged them is available."""
        if store is self._local or not self._degraded:
            try:
                await store.release(subject, lease, tokens)
            except StoreUnavailable as error:
                self._degrade(error)

    async def close(self) -> None:
        """Close the stores."""
        if self._settling is not None:
            self._settling.cancel()
        for store in (self._local, self._shared):
            if store is not None:
                await store.close()

    def _shared_or_none(self) -> Store | None:
        """Return the shared store if it is to be asked now; one request at a time probes it."""
        if self._degraded:
            now = self._clock()
            if now < self._retry_at:
                return None
            self._retry_at = now + self._pause_s
        return self._shared

    def _degrade(self, error: StoreUnavailable) -> None:
        now = self._clock()
        if not self._degraded:
            self._degraded = True
            self.metrics.limits_degraded(degraded=True)
            relapsed = now - self._recovered_at < _STEADY_S
            self._pause_s = min(2 * self._pause_s, MAX_RETRY_S) if relapsed else RETRY_S
            if not relapsed:
                self._line_pause_s = RETRY_S
        self._retry_at = now + self._pause_s
        if now >= self._next_line:
            logger.warning("rate_limit_degraded", fault=str(error), retry_s=self._pause_s)
            self._next_line = now + self._line_pause_s
            self._line_pause_s = min(2 * self._line_pause_s, MAX_RETRY_S)

    def _recover(self) -> None:
        if self._degraded:
            self._degraded = False
            self._recovered_at = self._clock()
            self.metrics.limits_degraded(degraded=False)
            logger.info("rate_limit_recovered")
            self._settling = asyncio.create_task(self._settle())

    async def _settle(self) -> None:
        """Release the remaining leases; those that cannot be released expire."""
        with suppress(StoreUnavailable):
            while self._unreleased and self._shared is not None:
                await self._shared.release(*self._unreleased.popleft(), 0)


class LimitedRequest:
    """One request of a subject: acquires its lease, reserves tokens and releases both."""

    def __init__(self, limiter: Limiter, subject: LimitedSubject, lease: str) -> None:
        self._limiter = limiter
        self._subject = subject
        self._lease = lease
        self.released = False
        self._store: Store | None = None
        self._status: LimitStatus | None = None
        # The store that charged, the tokens, and the end of their window by time.monotonic().
        self._reserved: tuple[Store, int, float] | None = None

    async def acquire(self) -> None:
        """Count the request.

        Raises:
            RateLimited: The subject has used up its requests or tokens.
            TooManyConcurrent: The subject has as many requests under way as it may have.

        """
        store, self._status = await self._limiter.acquire(self._subject, self._lease)
        self._raise_if_refused()
        self._store = store

    async def reserve(self, tokens: int) -> None:
        """Charge the tokens of texts that are about to be queued.

        Queued tokens stay charged even if the caller disconnects.

        Raises:
            RateLimited: The tokens exceed the subject's limit.
            InvalidInput: The tokens exceed what a whole window permits.

        """
        if self._store is None or self._status is None or not self._subject.rules.tokens:
            return
        asked_at = time.monotonic()
        store, status = await self._limiter.reserve(self._store, self._subject, tokens)
        self._status = self._status._replace(refused=status.refused, tokens=status.tokens)
        if status.refused and (oversized := self._subject.rules.oversized(tokens)):
            raise oversized
        self._raise_if_refused()
        if status.tokens is not None:
            # The store rounds the seconds of the window up.
            self._reserved = store, tokens, asked_at + status.tokens.reset_s - 1

    async def release(self, *, computed: bool = True) -> None:
        """End the request; for a refused request this does nothing.

        Refunds its tokens unless something was ``computed`` or their window has ended.
        """
        self.released = True
        if self._store is None:
            return
        if self._reserved is not None and not computed:
            store, tokens, until = self._reserved
            if time.monotonic() < until:
                await self._limiter.refund(store, self._subject, self._lease, tokens)
                self._refund_in_status(tokens)
        await self._limiter.release(self._store, self._subject, self._lease)

    def headers(self) -> Headers:
        """Return the rate-limit headers of the response."""
        if self._status is None:
            return []
        return self._subject.rules.headers(self._status)

    def _raise_if_refused(self) -> None:
        status = self._status
        if status is not None and status.refused is not None:
            self._limiter.metrics.request_limited(status.refused)
            raise self._subject.rules.refusal(status)

    def _refund_in_status(self, tokens: int) -> None:
        if self._status is not None and self._status.tokens is not None:
            window = self._status.tokens
            window = window._replace(used=max(0, window.used - tokens))
            self._status = self._status._replace(tokens=window)


def limiter_for(
    limits: RateLimitSettings,
    state: StateSettings,
    request_timeout_s: float,
    metrics: GatewayMetrics,
) -> Limiter | None:
    """Return the limiter of the settings, None if every limit is off."""
    rules, shared = SubjectRules(limits), None
    if rules.unlimited:
        return None
    if state.redis_url is not None:
        # The client is loaded only if it is used.
        from gateway.rate_limit.redis_store import RedisStore  # noqa: PLC0415

        url = state.redis_url.get_secret_value()
        shared = RedisStore(url, request_timeout_s + _LEASE_MARGIN_S)
    return Limiter(rules, InProcessStore(), shared, metrics)
