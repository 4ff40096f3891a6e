"""Tries, waits, deadlines and tokens, by both clients before the same script."""

import asyncio
from collections.abc import Callable, Iterator

import httpx
import pytest

from kaiten_client import (
    ConnectionFailed,
    InvalidRequest,
    KaitenError,
    NotFound,
    RateLimited,
    ServerError,
    TimedOut,
    Unauthenticated,
    Unavailable,
    UnexpectedAnswer,
)
from tests.unit.client.house import BOTH, TOKEN, House, Outcome, error, failure, good

REFUSED = httpx.ConnectError("refused")
GONE = httpx.RemoteProtocolError("Server disconnected without sending a response.")


@BOTH
@pytest.mark.parametrize(
    "fault",
    [
        REFUSED,
        GONE,
        httpx.ConnectTimeout("no answer"),
        httpx.ReadError("reset"),
        failure(429),
        failure(503),
        httpx.Response(503, text="<html>"),
        httpx.Response(502, text="<html>"),
        failure(504, "deadline_exceeded"),
    ],
    ids=repr,
)
def test_temporary_errors_are_retried(kind: str, fault: Outcome) -> None:
    house = House(kind, fault, good(), part=1)
    assert house.predict().predictions[0].label == "delivery"
    assert house.time.waited == [0.2]
    ids = house.script.sent("X-Request-ID")
    assert ids[0] == ids[1]


@BOTH
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (failure(400), InvalidRequest),
        (failure(401), Unauthenticated),
        (failure(404), NotFound),
        (failure(422), InvalidRequest),
        (failure(500), ServerError),
        (httpx.Response(200, text="<html>"), UnexpectedAnswer),
        (httpx.ReadTimeout("too late"), TimedOut),
        (httpx.PoolTimeout("too many"), TimedOut),
        (httpx.DecodingError("no gzip"), UnexpectedAnswer),
    ],
    ids=repr,
)
def test_what_no_other_try_can_mend_is_not(
    kind: str, fault: Outcome, expected: type[KaitenError]
) -> None:
    house = House(kind, fault)
    raised = error(house, token=TOKEN)
    assert type(raised) is expected
    assert raised.request_id in house.script.sent("X-Request-ID")
    assert house.time.waited == []


@BOTH
def test_tries_come_to_an_end_and_wait_twice_as_long_each(kind: str) -> None:
    house = House(kind, REFUSED, GONE, failure(503), REFUSED, part=1)
    assert type(error(house, retries=3)) is ConnectionFailed
    assert house.time.waited == pytest.approx([0.2, 0.4, 0.8])


@BOTH
def test_waits_are_bounded(kind: str) -> None:
    house = House(kind, *[REFUSED] * 9, part=1)
    error(house, retries=8, timeout_s=100)
    assert house.time.waited[-3:] == [5.0, 5.0, 5.0]


@BOTH
def test_no_retries_is_one_try(kind: str) -> None:
    house = House(kind, failure(503))
    assert type(error(house, retries=0)) is Unavailable


@BOTH
def test_what_may_have_cost_a_computation_is_repeated_once(kind: str) -> None:
    house = House(kind, httpx.Response(502), failure(503), failure(504), good())
    assert type(error(house, retries=9)) is TimedOut
    assert len(house.script.requests) == 3


@BOTH
@pytest.mark.parametrize("part", [0.0, 1.0])
def test_the_server_is_waited_for_as_long_as_it_asks_or_a_little_longer(
    kind: str, part: float
) -> None:
    late = failure(429, headers={"Retry-After": "7"})
    house = House(kind, late, good(), part=part)
    house.predict()
    assert house.time.waited == [7 + 0.2 * part]


@BOTH
def test_a_date_to_come_back_is_heeded(kind: str) -> None:
    late = failure(503, headers={"Retry-After": "Thu, 01 Jan 1970 00:00:04 GMT"})
    house = House(kind, late, good())
    house.predict()
    assert house.time.waited == [4]


@BOTH
@pytest.mark.parametrize("seconds", ["30", "86400", "9" * 400])
def test_a_wait_past_the_deadline_is_not_begun(kind: str, seconds: str) -> None:
    house = House(kind, failure(429, headers={"Retry-After": seconds}))
    raised = error(house, timeout_s=30)
    assert type(raised) is RateLimited
    assert raised.retry_after_s == float(seconds)
    assert house.time.waited == []


@BOTH
def test_each_attempt_sends_the_remaining_time(kind: str) -> None:
    late = failure(429, headers={"Retry-After": "7"})
    house = House(kind, late, REFUSED, good(), step_s=2)
    house.predict(timeout_s=99, call_options={"timeout_s": 20})
    assert house.script.sent("X-Request-Timeout-Ms") == ["20000", "11000", "9000"]
    limits = [request.extensions["timeout"] for request in house.script.requests]
    assert [limit["read"] for limit in limits] == [20.5, 11.5, 9.5]
    assert [limit["connect"] for limit in limits] == [5, 5, 5]


@BOTH
@pytest.mark.parametrize(("timeout_s", "sent"), [(1e-6, "1"), (1e9, "999999999")])
def test_timeout_header_stays_within_the_server_limits(
    kind: str, timeout_s: float, sent: str
) -> None:
    house = House(kind, good())
    house.predict(timeout_s=timeout_s)
    assert house.script.sent("X-Request-Timeout-Ms") == [sent]


@BOTH
def test_the_deadline_holds_over_all_tries(kind: str) -> None:
    house = House(kind, REFUSED, REFUSED, good(), step_s=2)
    raised = error(house, timeout_s=3.9, retries=9)
    assert type(raised) is ConnectionFailed
    assert len(house.script.requests) == 2


@BOTH
def test_a_time_limit_of_a_request_is_checked(kind: str) -> None:
    with pytest.raises(ValueError, match="timeout_s"):
        House(kind).predict(call_options={"timeout_s": 0})


def source(*tokens: str) -> Callable[[], str]:
    """Return a source that has one token after the other."""
    token_iterator: Iterator[str] = iter(tokens)
    return lambda: next(token_iterator)


@BOTH
def test_a_token_source_is_asked_for_each_try(kind: str) -> None:
    house = House(kind, failure(503), good())
    house.predict(token=source("first", "second"))
    assert house.script.sent("Authorization") == ["Bearer first", "Bearer second"]


@BOTH
def test_a_source_is_asked_once_more_after_a_401(kind: str) -> None:
    house = House(kind, failure(401), good())
    house.predict(token=source("old", "new"), retries=0)
    assert house.script.sent("Authorization") == ["Bearer old", "Bearer new"]
    assert house.time.waited == [0]


@BOTH
def test_a_second_401_is_the_end(kind: str) -> None:
    house = House(kind, failure(401), failure(401), good())
    assert type(error(house, token=source("old", "new", "newer"))) is Unauthenticated
    assert len(house.script.requests) == 2


@BOTH
def test_rejected_token_is_not_sent_again(kind: str) -> None:
    house = House(kind, failure(401), good())
    assert type(error(house, token=source("same", "same"))) is Unauthenticated
    assert len(house.script.requests) == 1


@BOTH
def test_a_source_may_not_take_longer_than_the_request(kind: str) -> None:
    house = House(kind)

    def slow() -> str:
        house.time.now_s += 30
        return TOKEN

    assert type(error(house, token=slow, timeout_s=30)) is TimedOut
    assert house.script.requests == []


@BOTH
def test_token_function_without_a_token_is_reported(kind: str) -> None:
    house = House(kind)
    raised = error(house, token=source("canary\nX-Evil: 1"))
    assert type(raised) is Unauthenticated
    assert "canary" not in str(raised)


def test_a_token_may_be_awaited() -> None:
    async def fetch() -> str:
        await asyncio.sleep(0)
        return TOKEN

    house = House("async", good())
    house.predict(token=fetch)
    assert house.script.sent("Authorization") == [f"Bearer {TOKEN}"]
