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
    TimedOut,
    UnexpectedAnswer,
    __version__,
)
from tests.unit.client.house import BOTH, TEXT, TOKEN, URL, House, Outcome, error, failure, good

REFUSED = httpx.ConnectError("refused")


@BOTH
def test_a_prediction_is_asked_for_and_read(kind: str) -> None:
    house = House(kind, good())
    answer = house.predict(token=TOKEN, timeout_s=2.5, asked={"top_k": 2, "model": "intent"})
    assert (answer.model, answer.request_id) == ("intent:1.0.0", "served")
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
    kept = httpx.Response(200, json={"accepted": 2, "joined": 1, "request_id": "served"})
    house = House(kind, away, kept)
    labels = [Label("one", 0, "delivery"), ("two", 3, "billing")]
    answer = house.feedback(labels, token=TOKEN, timeout_s=5)
    assert (answer.accepted, answer.joined, answer.request_id) == (2, 1, "served")
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
    found = error(House(kind, fault), token=TOKEN, retries=0)
    shown = str(found) + repr(found) + repr(vars(found))
    assert "canary" not in shown


def test_a_failed_connection_says_why_and_has_its_cause() -> None:
    cause = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] expired")
    found = error(House("sync", cause), retries=0)
    assert "kaiten.example (ConnectError: [SSL: CERTIFICATE_VERIFY_FAILED] expired)" in str(found)
    assert found.__cause__ is cause
    assert TOKEN not in "".join(traceback.format_exception(found))


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
