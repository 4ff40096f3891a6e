"""Rules, a store and a clock for the tests of limits."""

from gateway.rate_limit.windows import LimitedSubject, LimitStatus, Rules, Store, SubjectRules
from kaiten.settings.models import RateLimitPlan, RateLimitSettings


class Clock:
    """Moves only when the test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class RuledStore:
    """A store in which every subject has the same rules."""

    def __init__(self, store: Store, limits: Rules) -> None:
        self.store, self.limits = store, limits

    async def acquire(self, subject: str, lease: str) -> LimitStatus:
        return await self.store.acquire(LimitedSubject(subject, self.limits), lease)

    async def reserve(self, subject: str, tokens: int) -> LimitStatus:
        return await self.store.reserve(LimitedSubject(subject, self.limits), tokens)

    async def release(self, subject: str, lease: str, refund: int) -> None:
        await self.store.release(LimitedSubject(subject, self.limits), lease, refund)

    async def close(self) -> None:
        await self.store.close()


def rules(
    requests: str | None = None, tokens: str | None = None, concurrency: int | None = None
) -> Rules:
    return Rules(RateLimitPlan(requests=requests, tokens=tokens, concurrency=concurrency))


def subject_rules(
    requests: str | None = None, tokens: str | None = None, concurrency: int | None = None
) -> SubjectRules:
    """Return the rules of subjects that have no plan."""
    return SubjectRules(
        RateLimitSettings(requests=requests, tokens=tokens, concurrency=concurrency)
    )
