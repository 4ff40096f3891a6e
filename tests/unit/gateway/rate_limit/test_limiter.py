import asyncio
from collections.abc import Callable
from contextlib import suppress

import pytest
from structlog.typing import EventDict

from gateway.rate_limit.limiter import (
    MAX_RETRY_S,
    RETRY_S,
    LimitedRequest,
    Limiter,
    limiter_for,
)
from gateway.rate_limit.memory_store import InProcessStore
from gateway.rate_limit.windows import (
    LimitedSubject,
    LimitStatus,
    StoreUnavailable,
    SubjectRules,
)
from kaiten.errors import InvalidInput, RateLimited, TooManyConcurrent
from kaiten.settings.models import RateLimitSettings, StateSettings
from tests.unit.gateway.house import FakeMetrics
from tests.unit.gateway.rate_limit.house import Clock, subject_rules

ALICE = "kaiten|alice"


class Fragile(InProcessStore):
    """A shared store that can be unavailable, and notes its callers."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.away = False
        self.call_count = 0
        self.subjects: set[str] = set()
        self.closed = False

    async def acquire(self, subject: LimitedSubject, lease: str) -> LimitStatus:
        self._answer(subject)
        return await super().acquire(subject, lease)

    async def reserve(self, subject: LimitedSubject, tokens: int) -> LimitStatus:
        self._answer(subject)
        return await super().reserve(subject, tokens)

    async def release(self, subject: LimitedSubject, lease: str, refund: int) -> None:
        self._answer(subject)
        await super().release(subject, lease, refund)

    async def close(self) -> None:
        self.closed = True

    def _answer(self, subject: LimitedSubject) -> None:
        self.call_count += 1
        self.subjects.add(subject.digest)
        if self.away:
            raise StoreUnavailable("ConnectionError")


class Forgetful(Fragile):
    """Counts, but fails to answer, like a store that hangs and continues."""

    async def acquire(self, subject: LimitedSubject, lease: str) -> LimitStatus:
        status = await InProcessStore.acquire(self, subject, lease)
        if self.away:
            raise StoreUnavailable("TimeoutError")
        return status


class Shared:
    """A limiter with a shared store, and all that it is seen by."""

    def __init__(self, limits: SubjectRules, kind: type[Fragile] = Fragile) -> None:
        self.clock, self.watch = Clock(), FakeMetrics()
        self.store = kind(self.clock)
        self.limiter = Limiter(
            limits, InProcessStore(self.clock), self.store, self.watch, self.clock
        )

    async def ask(self, count: int = 1) -> list[bool]:
        return [await passes(self.limiter) for _ in range(count)]

    def request(self, identity: str = ALICE) -> LimitedRequest:
        return request_of(self.limiter, identity)


def request_of(limiter: Limiter, identity: str = ALICE) -> LimitedRequest:
    limited = limiter.request(identity)
    assert limited is not None
    return limited


async def passes(limiter: Limiter, tokens: int = 0) -> bool:
    limited = request_of(limiter)
    try:
        await limited.acquire()
        await limited.reserve(tokens)
    except RateLimited:
        return False
    await limited.release()
    return True


async def test_a_store_that_is_away_is_replaced_by_limits_of_the_same_size(
    logs: list[EventDict],
) -> None:
    shared = Shared(subject_rules(requests="2/minute"))
    assert await shared.ask(3) == [True, True, False]
    shared.store.away = True
    assert await shared.ask(3) == [True, True, False]
    assert shared.watch.degraded == [False, True]
    assert [line["event"] for line in logs] == ["rate_limit_degraded"]
    assert logs[0]["fault"] == "ConnectionError"


async def test_a_store_that_is_away_is_asked_again_every_few_seconds_by_one_request() -> None:
    shared = Shared(subject_rules(requests="99/minute"))
    shared.store.away = True
    await shared.ask(5)
    assert shared.store.call_count == 1
    shared.clock.now += RETRY_S
    await shared.ask(5)
    assert shared.store.call_count == 2
    shared.store.away = False
    shared.clock.now += RETRY_S - 1
    await shared.ask()
    assert shared.watch.degraded == [False, True]
    shared.clock.now += 1
    await shared.ask(2)
    assert shared.watch.degraded == [False, True, False]


async def test_many_that_fail_at_once_are_one_line(logs: list[EventDict]) -> None:
    shared = Shared(subject_rules(concurrency=99))
    requests = [shared.request(ALICE) for _ in range(20)]
    for limited in requests:
        await limited.acquire()
    shared.store.away = True
    for limited in requests:
        await limited.release()
    shared.clock.now += RETRY_S
    await shared.ask()
    assert [line["event"] for line in logs] == ["rate_limit_degraded"] * 2


async def test_tokens_count_here_where_the_shared_store_went_away_meanwhile() -> None:
    shared = Shared(subject_rules(tokens="10/minute"))
    limited = shared.request(ALICE)
    await limited.acquire()
    shared.store.away = True
    await limited.reserve(10)
    await limited.release()
    assert await shared.ask() == [False]


@pytest.mark.parametrize("kind", [Fragile, Forgetful])
async def test_what_was_under_way_when_it_went_away_is_given_back(kind: type[Fragile]) -> None:
    shared = Shared(subject_rules(concurrency=2), kind)
    before = shared.request(ALICE)
    await before.acquire()
    shared.store.away = True
    during = shared.request(ALICE)
    await during.acquire()
    await before.release()
    await during.release()
    shared.store.away = False
    shared.clock.now += RETRY_S
    probe = shared.request("kaiten|bob")
    await probe.acquire()
    await probe.release()
    # The task that gives back has its turn.
    await asyncio.sleep(0)
    assert shared.store.size == 0


async def test_one_that_is_cancelled_at_the_door_holds_no_place() -> None:
    class Slow(Fragile):
        async def acquire(self, subject: LimitedSubject, lease: str) -> LimitStatus:
            await super().acquire(subject, lease)
            return await asyncio.Event().wait() and await super().acquire(subject, lease)

    shared = Shared(subject_rules(concurrency=1), Slow)
    task = asyncio.create_task(shared.request(ALICE).acquire())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert shared.store.size == 0


async def test_a_store_never_sees_a_subject_in_the_clear() -> None:
    shared = Shared(subject_rules(requests="9/minute"))
    await shared.ask(2)
    await shared.request("kaiten|bob\ud800").acquire()
    assert len(shared.store.subjects) == 2
    assert {len(subject) for subject in shared.store.subjects} == {32}
    assert "alice" not in str(shared.store.subjects)


async def test_a_refusal_says_when_to_come_again_and_is_counted() -> None:
    shared = Shared(subject_rules(requests="1/minute"))
    await shared.ask()
    shared.clock.now += 59.9
    with pytest.raises(RateLimited) as refusal:
        await shared.request(ALICE).acquire()
    assert refusal.value.retry_after_s == 1
    assert [detail.field for detail in refusal.value.details] == ["requests"]
    assert shared.watch.limited == ["requests"]


async def test_a_caller_with_too_many_at_once_is_refused() -> None:
    shared = Shared(subject_rules(concurrency=1))
    await shared.request(ALICE).acquire()
    with pytest.raises(TooManyConcurrent):
        await shared.request(ALICE).acquire()
    assert shared.watch.limited == ["concurrency"]


async def test_closing_closes_the_stores() -> None:
    shared = Shared(subject_rules(requests="1/minute"))
    await shared.limiter.close()
    assert shared.store.closed


async def test_settings_make_a_limiter_or_none() -> None:
    watch, off = FakeMetrics(), RateLimitSettings(requests=None, tokens=None, concurrency=None)
    assert limiter_for(off, StateSettings(), 30, watch) is None
    local_limiter = limiter_for(RateLimitSettings(), StateSettings(), 30, watch)
    assert local_limiter is not None
    assert await passes(local_limiter)
    assert watch.degraded == []
    nobody = StateSettings.model_validate({"redis_url": "redis://127.0.0.1:1/0"})
    redis_limiter = limiter_for(RateLimitSettings(), nobody, 30, watch)
    assert redis_limiter is not None
    assert await passes(redis_limiter)
    assert watch.degraded == [False, True]
    await redis_limiter.close()


async def test_tokens_that_no_window_has_room_for_are_no_matter_of_time() -> None:
    shared = Shared(subject_rules(tokens="10/minute"))
    limited = shared.request(ALICE)
    await limited.acquire()
    with pytest.raises(InvalidInput) as refusal:
        await limited.reserve(523)
    assert refusal.value.details[0].field == "tokens"
    assert "has 523" in refusal.value.details[0].reason
    assert "is 10 in 60 seconds" in refusal.value.details[0].reason
    assert shared.watch.limited == []


async def test_what_was_reserved_and_not_computed_is_given_back() -> None:
    shared = Shared(subject_rules(tokens="10/minute"))
    for computed, remaining in ((False, b"r=10"), (True, b"r=0"), (True, b"r=0")):
        limited = shared.request(ALICE)
        with suppress(RateLimited):
            await limited.acquire()
            await limited.reserve(10)
            await limited.release(computed=computed)
        assert remaining in dict(limited.headers())[b"ratelimit"]


class Slow(Fragile):
    """Answers after the seconds that the test sets; over half a second it is too late."""

    delay_s = 0.0

    async def acquire(self, subject: LimitedSubject, lease: str) -> LimitStatus:
        assert isinstance(self._clock, Clock)
        self._clock.now += min(self.delay_s, 0.5)
        if self.delay_s > 0.5:
            raise StoreUnavailable("TimeoutError")
        return await super().acquire(subject, lease)


async def test_a_slow_store_is_not_used_again_until_it_is_fast() -> None:
    shared = Shared(subject_rules(requests="9999/minute"), Slow)
    assert isinstance(shared.store, Slow)
    shared.store.delay_s = 0.6
    await shared.ask()
    # Fast enough to answer, and too slow to rely on.
    shared.store.delay_s = 0.4
    for _ in range(20):
        shared.clock.now += RETRY_S
        await shared.ask()
    assert shared.watch.degraded == [False, True]
    shared.store.delay_s = 0.1
    shared.clock.now += RETRY_S
    await shared.ask()
    assert shared.watch.degraded == [False, True, False]


async def test_a_store_that_comes_and_goes_is_used_ever_more_rarely(
    logs: list[EventDict],
) -> None:
    shared = Shared(subject_rules(requests="9999999/minute"))
    for _ in range(300):
        # It answers after a pause, and then fails.
        shared.store.away = not shared.limiter._degraded
        await shared.ask()
        shared.clock.now += 1
    assert shared.watch.degraded.count(True) <= 10
    assert len(logs) <= 20
    # Once it has been steady, it is forgiven.
    shared.store.away = False
    shared.clock.now += MAX_RETRY_S
    await shared.ask()
    shared.clock.now += 2 * MAX_RETRY_S
    shared.store.away = True
    await shared.ask()
    shared.store.away = False
    shared.clock.now += RETRY_S
    await shared.ask()
    assert shared.watch.degraded[-1] is False


async def test_an_answer_from_before_it_was_lost_does_not_bring_it_back() -> None:
    class Held(Fragile):
        free = asyncio.Event()

        async def acquire(self, subject: LimitedSubject, lease: str) -> LimitStatus:
            if lease.endswith("0"):
                await self.free.wait()
            return await super().acquire(subject, lease)

    shared = Shared(subject_rules(requests="99/minute"), Held)
    early = asyncio.create_task(shared.request(ALICE).acquire())
    await asyncio.sleep(0)
    shared.store.away = True
    await shared.ask()
    shared.store.away = False
    Held.free.set()
    await early
    assert shared.watch.degraded == [False, True]


async def test_a_store_that_stays_away_is_logged_ever_more_rarely(
    logs: list[EventDict],
) -> None:
    shared = Shared(subject_rules(requests="9999/minute"))
    shared.store.away = True
    for _ in range(600):
        await shared.ask()
        shared.clock.now += 1
    assert 5 <= len(logs) <= 20


def plan_settings(**defaults: object) -> RateLimitSettings:
    """Return settings with a plan of three requests, and one without limits."""
    free = {"requests": "off", "tokens": "off", "concurrency": "off"}
    return RateLimitSettings.model_validate(
        {
            **defaults,
            "plans": {"batch": {"requests": "3/minute"}, "free": free},
            "subjects": {"kaiten|nightly": "batch", "api-key|weekly": "batch", "ops|*": "free"},
        }
    )


async def test_each_subject_of_a_plan_has_its_limits_for_itself() -> None:
    shared = Shared(SubjectRules(plan_settings(requests="1/minute")))

    async def admitted(identity: str) -> int:
        count = 0
        with suppress(RateLimited):
            while count < 9:
                await shared.request(identity).acquire()
                count += 1
        return count

    identities = ("kaiten|nightly", ALICE, "api-key|weekly")
    assert [await admitted(identity) for identity in identities] == [3, 1, 3]
    assert shared.limiter.request("ops|anyone") is None
    # Counted alone, they have the same limits.
    shared.store.away = True
    assert [await admitted(identity) for identity in identities] == [3, 1, 3]


async def test_a_plan_may_be_the_only_limit() -> None:
    off = dict.fromkeys(("requests", "tokens", "concurrency"), "off")
    limiter = limiter_for(plan_settings(**off), StateSettings(), 30, FakeMetrics())
    assert limiter is not None
    assert limiter.request(ALICE) is None
    assert limiter.request("kaiten|nightly") is not None
