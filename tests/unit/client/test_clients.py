"""What both clients do alike, each before the same script."""

import asyncio
import json
import traceback
from collections.abc import Iterator

import httpx
import pytest

from kaiten_client import (
    KaitenError,
    Label,
    MismatchedAnswer,
    TimedOut,
    UnexpectedAnswer,
    __version__,
)
from tests.unit.client.house import (
    BOTH,
    GOOD,
    TEXT,
    TOKEN,
    URL,
    House,
    Outcome,
    error,
    failure,
    good,
)

REFUSED = httpx.ConnectError("refused")


@BOTH
def test_a_prediction_is_asked_for_and_read(kind: str) -> None:
    house = House(kind, good())
    answer = house.predict(token=TOKEN, timeout_s=2.5, call_options={"top_k": 2, "model": "intent"})
    assert answer.model == "intent:1.0.0"
    assert [answer.request_id] == house.script.sent("X-Request-ID")
    assert answer.predictions[0].label == answer.predictions[0].top_k[0].label == "delivery"
    (request,) = house.script.requests
    assert (request.method, str(request.url)) == ("POST", f"{URL}/api/v2/predict")
    assert json.loads(request.content) == {"inputs": [TEXT], "top_k": 2, "model": "intent"}
    expected = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Authorization": f"Bearer {TOKEN}",
        "X-Request-Timeout-Ms": "2500",
        "User-Agent": f"kaiten-client/{__version__}",
    }
    assert {name: request.headers[name] for name in expected} == expected
    assert len(request.headers["X-Request-ID"]) == 32


@BOTH
def test_feedback_is_given_again_until_it_is_kept(kind: str) -> None:
    away = failure(503, "database_unavailable", headers={"Retry-After": "2"})
    stored = httpx.Response(200, json={"accepted": 2, "joined": 1, "request_id": "served"})
    house = House(kind, away, stored)
    labels = [Label("one", 0, "delivery"), ("two", 3, "billing")]
    answer = house.feedback(labels, token=TOKEN, timeout_s=5)
    assert (answer.accepted, answer.joined) == (2, 1)
    assert [answer.request_id] * 2 == house.script.sent("X-Request-ID")
    assert house.time.waited == [2]
    first, again = house.script.requests
    assert (again.method, str(again.url)) == ("POST", f"{URL}/api/v2/feedback")
    assert first.content == again.content
    assert json.loads(again.content) == {
        "feedback": [
            {"request_id": "one", "item": 0, "label": "delivery"},
            {"request_id": "two", "item": 3, "label": "billing"},
        ]
    }
    assert house.script.sent("Authorization") == [f"Bearer {TOKEN}"] * 2


@BOTH
def test_a_path_before_the_routes_is_kept(kind: str) -> None:
    house = House(kind, good())
    house.predict(url=f"{URL}/models/")
    assert str(house.script.requests[0].url) == f"{URL}/models/api/v2/predict"


@BOTH
def test_an_api_key_stands_in_the_tokens_place(kind: str) -> None:
    house = House(kind, good())
    house.predict(api_key="key\n")
    assert house.script.sent("X-API-Key") == ["key"]
    assert house.script.sent("Authorization") == [None]


def mismatched_response(status: int, header: str | None, **body: object) -> httpx.Response:
    """Return an answer for a request that another caller has sent."""
    headers = {} if header is None else {"X-Request-ID": header}
    return httpx.Response(status, json=body, headers=headers)


ERROR = {"code": "some_code", "message": "It failed.", "details": []}
MISMATCHED_RESPONSES = {
    "by its header": mismatched_response(200, "other", **GOOD),
    "by its body": mismatched_response(200, None, **GOOD | {"request_id": "other"}),
    "by both": mismatched_response(200, "other", **GOOD | {"request_id": "other"}),
    "a refusal by its header": mismatched_response(
        401, "other", error=ERROR | {"request_id": "served"}
    ),
    "a refusal by its body": mismatched_response(429, None, error=ERROR | {"request_id": "other"}),
    "a failure by its body": mismatched_response(503, None, error=ERROR | {"request_id": "other"}),
    "of no result": mismatched_response(200, None, **GOOD | {"predictions": []}),
    "of two results": mismatched_response(
        200, None, **GOOD | {"predictions": GOOD["predictions"] * 2}
    ),
}


@BOTH
@pytest.mark.parametrize("answer", MISMATCHED_RESPONSES.values(), ids=MISMATCHED_RESPONSES)
def test_an_answer_for_another_request_is_an_error_and_not_asked_for_again(
    kind: str, answer: httpx.Response
) -> None:
    house = House(kind, answer)
    result = error(house, token=lambda: TOKEN)
    assert type(result) is MismatchedAnswer
    assert [result.request_id] == house.script.sent("X-Request-ID")


@BOTH
@pytest.mark.parametrize(
    ("header", "accepted", "named"),
    [("other", 1, "served"), (None, 1, "other"), (None, 2, "served"), (None, 0, "served")],
)
def test_feedback_response_for_another_request_is_rejected(
    kind: str, header: str | None, accepted: int, named: str
) -> None:
    answer = mismatched_response(200, header, accepted=accepted, joined=0, request_id=named)
    with pytest.raises(MismatchedAnswer):
        House(kind, answer).feedback([("one", 0, "delivery")])


@BOTH
def test_readiness_that_another_has_asked_for_is_an_error(kind: str) -> None:
    with pytest.raises(MismatchedAnswer):
        House(kind, mismatched_response(200, "other")).ready()


@BOTH
def test_a_proxy_may_replace_the_id_if_the_caller_says_so(kind: str) -> None:
    answer = mismatched_response(200, "other", **GOOD | {"request_id": "other"})
    result = House(kind, answer).predict(verify_request_id=False)
    assert result.request_id == "other"


@BOTH
def test_a_proxys_own_error_may_have_an_id_of_its_own(kind: str) -> None:
    house = House(kind, httpx.Response(503, headers={"X-Request-ID": "other"}), good())
    assert house.predict().predictions[0].label == "delivery"


@BOTH
def test_a_redirect_is_not_followed(kind: str) -> None:
    house = House(kind, httpx.Response(307, headers={"Location": "https://elsewhere.example"}))
    assert type(error(house, token=TOKEN)) is UnexpectedAnswer
    assert len(house.script.requests) == 1


@BOTH
@pytest.mark.parametrize(
    "fault",
    [
        failure(500),
        httpx.Response(200, text=TEXT + TOKEN),
        httpx.ConnectError("[Errno 111] Connection refused"),
        httpx.RemoteProtocolError(TEXT + TOKEN),
        httpx.ReadTimeout(""),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_an_error_holds_no_text_and_no_token(kind: str, fault: Outcome) -> None:
    result = error(House(kind, fault), token=TOKEN, retries=0)
    text = str(result) + repr(result) + repr(vars(result))
    assert "canary" not in text


def test_failed_connection_reports_its_cause() -> None:
    cause = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] expired")
    result = error(House("sync", cause), retries=0)
    assert "cannot be reached (ConnectError: [SSL: CERTIFICATE_VERIFY_FAILED] expired)" in str(
        result
    )
    assert result.__cause__ is cause
    assert TOKEN not in "".join(traceback.format_exception(result))


@BOTH
@pytest.mark.parametrize(
    ("outcome", "ready"),
    [
        (httpx.Response(200, text="\n"), True),
        (failure(503, "not_ready"), False),
        (httpx.Response(502), False),
        (httpx.Response(504), False),
        (REFUSED, False),
        (httpx.ReadTimeout(""), False),
    ],
    ids=repr,
)
def test_readiness_is_asked_once(kind: str, outcome: Outcome, ready: bool) -> None:  # noqa: FBT001
    house = House(kind, outcome)
    assert house.ready() is ready
    (request,) = house.script.requests
    assert (request.method, str(request.url)) == ("GET", f"{URL}/readyz")


@BOTH
@pytest.mark.parametrize("status", [302, 404, 500])
def test_readiness_hides_nothing_that_no_waiting_mends(kind: str, status: int) -> None:
    with pytest.raises(KaitenError):
        House(kind, httpx.Response(status)).ready()


@BOTH
def test_readiness_shows_no_one_the_token(kind: str) -> None:
    house = House(kind, httpx.Response(200))
    house.ready(token=lambda: TOKEN)
    assert house.script.sent("Authorization") == [None]


def test_an_answer_that_trickles_is_ended() -> None:
    house = House("sync")

    class Trickle(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            while True:
                house.time.now_s += 1
                yield b" "

    house.script.outcomes = iter([httpx.Response(200, stream=Trickle())])
    assert type(error(house, timeout_s=5)) is TimedOut
    assert house.time.now_s == 1006


async def test_an_answer_that_never_comes_is_ended() -> None:
    house = House("async")

    async def never(request: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    transport = httpx.MockTransport(never)
    async with house.async_client(timeout_s=0.001, transport=transport) as client:
        with pytest.raises(TimedOut):
            await client.predict(["a"])
