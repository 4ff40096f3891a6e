import asyncio
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import httpx
import pytest
from starlette.types import Message

from gateway.rate_limit.limiter import Limiter
from gateway.rate_limit.memory_store import InProcessStore
from gateway.rate_limit.windows import SubjectRules
from kaiten.context import current
from kaiten.errors import QueueFull
from kaiten.settings.models import RateLimitSettings
from tests.unit.gateway.house import (
    AUTH,
    BENTO,
    GOOD,
    PREDICTIONS,
    V1,
    V2,
    Answer,
    Classifier,
    FakeMetrics,
    House,
    Raising,
    Stuck,
    bearer,
    error_of,
    fields_of,
)
from tests.unit.gateway.middleware.test_request_metrics import request_to
from tests.unit.gateway.rate_limit.house import Clock, subject_rules

BOB = {"Authorization": bearer("predict", subject="bob")}


class Gate(Classifier):
    """Answers once it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.predict_started, self.open = asyncio.Event(), asyncio.Event()

    async def predict(self, inputs: Sequence[str], deadline: float) -> list[Answer]:
        self.predict_started.set()
        await self.open.wait()
        return await super().predict(inputs, deadline)


def limited(
    *runners: Classifier,
    requests: str | None = None,
    tokens: str | None = None,
    concurrency: int | None = None,
    request_timeout_s: float = 30,
) -> House:
    limits, clock = subject_rules(requests, tokens, concurrency), Clock()
    limiter = Limiter(limits, InProcessStore(clock), None, FakeMetrics(), clock)
    return House(*runners, limiter=limiter, request_timeout_s=request_timeout_s)


def refusal_of(answer: httpx.Response) -> tuple[int, str, list[str], str]:
    error = error_of(answer)
    return answer.status_code, error["code"], fields_of(answer), answer.headers["Retry-After"]


def uncollected() -> set[str]:
    """Return which classes of ours have instances that only the garbage collector would free."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        kinds = {type(instance) for instance in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    packages = "gateway", "kaiten", "monitors", "runners"
    return {kind.__qualname__ for kind in kinds if kind.__module__.partition(".")[0] in packages}


@pytest.mark.parametrize("path", PREDICTIONS)
async def test_requests_are_freed_without_the_garbage_collector(path: str) -> None:
    house = limited(requests="2/minute", tokens="100/minute", concurrency=2)
    timing_out = limited(Stuck(), requests="2/minute", request_timeout_s=0.01)
    assert (await house.post(path, GOOD[path])).status_code == 200
    gc.collect()
    gc.disable()
    try:
        statuses = [
            (await house.post(path, GOOD[path])).status_code,
            (await house.post(path, GOOD[path])).status_code,
            (await house.post(path, {"text": 1}, BOB)).status_code,
            (await timing_out.post(path, GOOD[path])).status_code,
        ]
        assert statuses == [200, 429, 422, 504]
        assert uncollected() == set()
    finally:
        gc.enable()


@pytest.mark.parametrize("path", PREDICTIONS)
async def test_the_request_after_the_last_is_refused(path: str) -> None:
    house = limited(requests="2/minute")
    answers = [await house.post(path, GOOD[path]) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert refusal_of(answers[-1]) == (429, "rate_limited", ["requests"], "60")
    assert {answer.headers["RateLimit-Policy"] for answer in answers} == {'"requests";q=2;w=60'}
    assert [answer.headers["RateLimit"] for answer in answers] == [
        f'"requests";r={remaining};t=60' for remaining in (1, 0, 0)
    ]


async def test_routes_share_a_limit_and_subjects_do_not() -> None:
    house = limited(requests="2/minute")
    statuses = [(await house.post(path, GOOD[path])).status_code for path in PREDICTIONS]
    assert statuses == [200, 200, 429]
    assert (await house.post(V1, GOOD[V1], BOB)).status_code == 200


async def test_a_caller_over_its_limit_makes_us_read_no_body() -> None:
    reads: list[int] = []

    async def body() -> AsyncIterator[bytes]:
        reads.append(1)
        yield b"{}"

    house = limited(requests="1/minute")
    await house.post(V1, GOOD[V1])
    assert (await house.post(V1, body())).status_code == 429
    assert reads == []


async def test_who_has_no_good_token_counts_for_nobody() -> None:
    house = limited(requests="1/minute")
    for headers in ({"Authorization": "Bearer x"}, {"Authorization": bearer("ops")}):
        answer = await house.post(V1, GOOD[V1], headers)
        assert answer.status_code in {401, 403}
        assert "RateLimit" not in answer.headers
    assert (await house.post(V1, GOOD[V1])).status_code == 200


async def test_open_routes_have_no_limit() -> None:
    house = limited(requests="1/minute", concurrency=1)
    answers = [await house.ask("GET", "/health") for _ in range(3)]
    assert {answer.status_code for answer in answers} == {200}
    assert "RateLimit" not in answers[0].headers


@pytest.mark.parametrize(("path", "charged"), [(V1, 3), (V2, 5), (BENTO, 5)])
async def test_tokens_that_were_computed_are_charged(path: str, charged: int) -> None:
    house = limited(tokens="3/minute")
    body = {"text": "where is it"} if path == V1 else {"inputs": ["where is it", "my delivery"]}
    answer = await house.post(path, body)
    assert answer.status_code == 200
    assert answer.headers["RateLimit"] == f'"tokens";r={max(0, 3 - charged)};t=60'
    assert refusal_of(await house.post(path, body)) == (429, "rate_limited", ["tokens"], "60")


async def test_what_failed_costs_a_request_and_no_tokens() -> None:
    house = limited(Raising(QueueFull(7)), requests="9/minute", tokens="9/minute")
    answer = await house.post(V1, GOOD[V1])
    assert (answer.status_code, error_of(answer)["code"]) == (429, "queue_full")
    assert answer.headers["RateLimit"] == '"requests";r=8;t=60, "tokens";r=9;t=60'


class Reserving(Classifier):
    """Reserves so many tokens for a request, and then does as the test says."""

    def __init__(self, tokens: int, then: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self._tokens, self._then = tokens, then

    async def predict(self, inputs: Sequence[str], deadline: float) -> list[Answer]:
        reserve = current().reserve
        assert reserve is not None
        await reserve(self._tokens)
        await self._then()
        return [self._answer(text.split()) for text in inputs]


async def wait_forever() -> None:
    await asyncio.Event().wait()


async def raise_queue_full() -> None:
    raise QueueFull(7)


@pytest.mark.parametrize("how", ["short limit", "leaves"])
async def test_who_leaves_or_sets_a_short_limit_is_charged_what_it_queued(how: str) -> None:
    house = limited(Reserving(600, wait_forever), tokens="1000/minute")
    for _ in range(2):
        request = house.post(V1, GOOD[V1], {"X-Request-Timeout-Ms": "20"})
        if how == "leaves":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(request, 0.01)
        else:
            assert (await request).status_code == 504
    assert refusal_of(await house.post(V1, GOOD[V1])) == (429, "rate_limited", ["tokens"], "60")


async def test_requests_at_once_queue_no_more_than_the_limit_and_a_batch() -> None:
    house = limited(Reserving(600, lambda: asyncio.sleep(0)), tokens="1000/minute")
    answers = await asyncio.gather(*(house.post(V1, GOOD[V1]) for _ in range(20)))
    statuses = [answer.status_code for answer in answers]
    assert sorted(statuses) == [200, 200] + [429] * 18
    assert {refusal_of(answer)[1] for answer in answers if answer.status_code == 429} == {
        "rate_limited"
    }


async def test_what_the_model_had_no_room_for_is_given_back() -> None:
    house = limited(Reserving(600, raise_queue_full), tokens="1000/minute")
    for _ in range(3):
        answer = await house.post(V1, GOOD[V1])
        assert error_of(answer)["code"] == "queue_full"
        assert answer.headers["RateLimit"] == '"tokens";r=1000;t=60'


async def test_one_too_many_at_once_is_refused_until_another_has_left() -> None:
    gate = Gate()
    house = limited(gate, requests="9/minute", concurrency=1)
    first = asyncio.create_task(house.post(V1, GOOD[V1]))
    await gate.predict_started.wait()
    assert refusal_of(await house.post(V1, GOOD[V1])) == (
        429,
        "too_many_concurrent",
        ["concurrency"],
        "1",
    )
    gate.open.set()
    assert (await first).status_code == 200
    # One after the other, there is never more than one.
    answers = [await house.post(path, GOOD[path]) for path in PREDICTIONS]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    # Rejected requests were not counted.
    assert answers[-1].headers["RateLimit"] == '"requests";r=5;t=60'


async def test_a_place_is_free_after_a_failure_a_deadline_and_a_caller_who_left() -> None:
    house = limited(Stuck(), concurrency=1, request_timeout_s=0.01)
    assert (await house.post(V1, b"{")).status_code == 400
    for _ in range(2):
        assert (await house.post(V1, GOOD[V1])).status_code == 504
    stuck = Stuck()
    house = limited(stuck, concurrency=1)
    request = asyncio.create_task(house.post(V1, GOOD[V1]))
    await stuck.predict_started.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert (await house.post(V1, b"{")).status_code == 400


async def test_a_refusal_names_nobody() -> None:
    house = limited(requests="1/minute")
    await house.post(V1, GOOD[V1])
    assert "alice" not in (await house.post(V1, GOOD[V1])).text


async def test_who_asks_again_as_soon_as_it_has_its_status_is_not_its_own_rival() -> None:
    house = limited(concurrency=1)
    statuses: list[int] = []
    body = [{"type": "http.request", "body": json.dumps(GOOD[V1]).encode()}]

    async def receive() -> Message:
        return body.pop() if body else await asyncio.Event().wait() and {}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            second_answer = await asyncio.create_task(house.post(V1, GOOD[V1]))
            statuses.extend([message["status"], second_answer.status_code])

    await house.app(request_to(V1), receive, send)
    assert statuses == [200, 200]


async def test_a_subject_whose_plan_has_no_limits_is_not_counted() -> None:
    settings = RateLimitSettings.model_validate(
        {
            "requests": "1/minute",
            "plans": {"free": {"requests": "off", "tokens": "off", "concurrency": "off"}},
            "subjects": {f"{AUTH.issuer}|bob": "free"},
        }
    )
    limiter = Limiter(SubjectRules(settings), InProcessStore(Clock()), None, FakeMetrics())
    house = House(limiter=limiter)
    answers = [await house.post(V2, GOOD[V2], BOB) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert "RateLimit-Policy" not in answers[-1].headers
    statuses = [(await house.post(V2, GOOD[V2])).status_code for _ in range(2)]
    assert statuses == [200, 429]
