import asyncio
import json
import logging
from contextlib import suppress

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send
from structlog.typing import EventDict

from gateway.exchange import Exchange, add_exchange
from gateway.middleware.request_metrics import RequestMetricsMiddleware
from kaiten.errors import ClientDisconnected, InferenceFailed, QueueFull
from tests.unit.gateway.house import (
    BENTO,
    CANARY,
    GOOD,
    PREDICTIONS,
    TAG,
    V1,
    V2,
    Broken,
    Classifier,
    Events,
    FakeMetrics,
    House,
    Raising,
    Stuck,
    bearer,
)


def request_to(path: str) -> Scope:
    """Return the scope of a good request, for a test that plays the server itself."""
    headers = {"content-type": "application/json", "authorization": bearer("predict")}
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 4711),
    }


ROUTES = House().services.routes
RUNNERS = [
    (Classifier(), 200, TAG),
    (Classifier(ready=False), 503, ""),
    (Raising(QueueFull(1)), 429, TAG),
    (Raising(InferenceFailed()), 500, TAG),
    (Raising(RuntimeError()), 500, TAG),
    (Broken(), 500, TAG),
]


@pytest.mark.parametrize(("runner", "status", "model"), RUNNERS)
@pytest.mark.parametrize("path", PREDICTIONS)
async def test_a_request_is_counted_once_as_the_caller_saw_it(
    path: str, runner: Classifier, status: int, model: str
) -> None:
    house = House(runner)
    answer = await house.post(path, GOOD[path])
    assert answer.status_code == status
    assert house.metrics.started == [path]
    assert house.metrics.answered == [(path, model, status)]


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Authorization": ""}, {}, 401),
        ({"Authorization": bearer("ops")}, None, 403),
        ({"Content-Type": "text/plain"}, {}, 415),
        ({}, {}, 422),
        ({}, b"{", 400),
        ({"Content-Length": "99999999"}, {}, 413),
    ],
)
@pytest.mark.parametrize("path", PREDICTIONS)
async def test_a_refused_request_is_counted(
    path: str, headers: dict[str, str], body: object, status: int
) -> None:
    house = House()
    await house.post(path, GOOD[path] if body is None else body, headers)
    assert house.metrics.started == [path]
    assert house.metrics.answered == [(path, "", status)]


async def test_a_request_that_takes_too_long_is_counted() -> None:
    house = House(Stuck(), request_timeout_s=0.01)
    await house.post(V2, GOOD[V2])
    assert house.metrics.answered == [(V2, TAG, 504)]


async def test_another_method_is_counted() -> None:
    house = House()
    await house.ask("GET", V1, headers={"Authorization": bearer("predict")})
    assert house.metrics.answered == [(V1, "", 405)]


@pytest.mark.parametrize("status", [400, 404, 500, 503])
async def test_a_foreign_failure_is_counted(status: int) -> None:
    house = House(inner=PlainTextResponse("foreign", status))
    await house.post(BENTO, GOOD[BENTO])
    assert house.metrics.answered == [(BENTO, "", status)]


@pytest.mark.parametrize(
    "path",
    [
        "/health",
        "/metrics",
        "/docs",
        "/docs.json",
        "/",
        "/elsewhere",
        "/api/v1/predict/",
        "/api/v1/predict/more",
        "/API/V1/PREDICT",
    ],
)
async def test_no_other_path_is_counted(path: str) -> None:
    house = House()
    await house.ask("GET", path)
    assert house.metrics.started == []
    assert house.metrics.answered == []


@pytest.mark.parametrize("path", PREDICTIONS)
async def test_a_request_whose_caller_is_gone_is_counted_as_499(path: str) -> None:
    runner = Stuck()
    house = House(runner)
    request = asyncio.create_task(house.post(path, GOOD[path]))
    await runner.predict_started.wait()
    request.cancel()
    with suppress(asyncio.CancelledError):
        await request
    assert house.metrics.answered == [(path, TAG, 499)]
    assert house.events.emitted == []


@pytest.mark.parametrize("path", PREDICTIONS)
async def test_what_a_caller_who_leaves_had_asked_is_dropped(path: str) -> None:
    runner = Stuck()
    house = House(runner)
    sent_messages: list[Message] = []
    messages: list[Message] = [{"type": "http.request", "body": json.dumps(GOOD[path]).encode()}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await runner.predict_started.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent_messages.append(message)

    await house.app(request_to(path), receive, send)
    assert runner.dropped
    # No one reads it, but BentoML waits for an answer to begin, and else holds the request.
    assert [message.get("status") for message in sent_messages] == [499, None]
    assert house.metrics.answered == [(path, TAG, 499)]
    assert house.events.emitted == []


@pytest.mark.parametrize("path", PREDICTIONS)
async def test_a_caller_who_leaves_within_the_body_is_counted_as_499(path: str) -> None:
    house = House()
    sent_messages: list[Message] = []
    messages: list[Message] = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": b'{"te', "more_body": True},
    ]

    async def receive() -> Message:
        return messages.pop()

    async def send(message: Message) -> None:
        sent_messages.append(message)

    await house.app(request_to(path), receive, send)
    assert [message.get("status") for message in sent_messages] == [499, None]
    assert house.metrics.answered == [(path, "", 499)]


async def test_an_answer_that_breaks_off_is_counted_by_its_status() -> None:
    async def breaks_off(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError

    house = House(inner=breaks_off)
    with pytest.raises(RuntimeError):
        await house.post(V1, GOOD[V1])
    assert house.metrics.answered == [(V1, "", 200)]


@pytest.mark.parametrize("headers", [[(b"content-type", b"application/json")], []])
async def test_an_answer_that_finds_no_connection_is_counted_as_499(
    headers: list[tuple[bytes, bytes]], logs: list[EventDict]
) -> None:
    async def send(message: Message) -> None:
        # As uvloop says it, where uvicorn has not noticed.
        raise RuntimeError("unable to perform operation on <TCPTransport>; the handler is closed")

    async def receive() -> Message:
        return {"type": "http.request", "body": b'{"text": "my delivery"}', "more_body": False}

    house = House()
    with pytest.raises(ClientDisconnected):
        await house.app({**request_to(V1), "headers": headers}, receive, send)
    assert house.metrics.answered == [(V1, "", 499)]
    assert [line["event"] for line in logs] == ["request"]


async def test_an_answer_that_the_server_refuses_is_a_failure(logs: list[EventDict]) -> None:
    async def send(message: Message) -> None:
        raise RuntimeError("Invalid HTTP header value.")

    async def receive() -> Message:
        return {"type": "http.request", "body": b'{"text": "my delivery"}', "more_body": False}

    with pytest.raises(RuntimeError, match="header value"):
        await House().app(request_to(V1), receive, send)
    assert "request_failed" in [line["event"] for line in logs]


async def test_an_event_of_each_item_is_emitted() -> None:
    house = House()
    await house.post(V1, {"text": "billing"})
    await house.post(V2, {"inputs": ["delivery", "account"]})
    await house.post(BENTO, {"inputs": ["other"]})
    labels = [event.label for event in house.events.emitted]
    assert labels == ["billing", "delivery", "account", "other"]


@pytest.mark.parametrize("runner", [runner for runner, status, _ in RUNNERS if status != 200])
@pytest.mark.parametrize("path", PREDICTIONS)
async def test_a_request_without_an_answer_emits_no_event(path: str, runner: Classifier) -> None:
    house = House(runner)
    await house.post(path, GOOD[path])
    assert house.events.emitted == []


async def test_requests_at_once_are_kept_apart() -> None:
    house = House(Classifier(TAG), Classifier("topic:2.1.0"))
    bodies = [
        {"inputs": [label], "model": model}
        for label in ("billing", "other")
        for model in ("intent", "topic", "unknown")
    ]
    answers = await asyncio.gather(*(house.post(V2, body) for body in bodies))
    assert [answer.status_code for answer in answers] == [200, 200, 404] * 2
    assert sorted(house.metrics.answered) == sorted(
        [(V2, TAG, 200), (V2, "topic:2.1.0", 200), (V2, "", 404)] * 2
    )
    assert sorted((event.model_tag, event.label) for event in house.events.emitted) == [
        (TAG, "billing"),
        (TAG, "other"),
        ("topic:2.1.0", "billing"),
        ("topic:2.1.0", "other"),
    ]


@pytest.mark.parametrize(
    ("path", "route", "status", "level"),
    [
        (V2, V2, 200, "info"),
        (BENTO, BENTO, 200, "info"),
        ("/elsewhere", None, 404, "info"),
        ("/docs", "/docs", 405, "debug"),
    ],
)
async def test_a_request_is_one_line_in_the_log(
    logs: list[EventDict], path: str, route: str | None, status: int, level: str
) -> None:
    await House().post(path, GOOD[V2])
    (line,) = logs
    assert (line["event"], line["log_level"]) == ("request", level)
    assert (line["method"], line["route"], line["status"]) == ("POST", route, status)
    assert line["model"] == (TAG if status == 200 else None)


@pytest.mark.parametrize("path", PREDICTIONS)
@pytest.mark.parametrize("runner", [runner for runner, _, _ in RUNNERS])
async def test_no_text_and_no_token_is_logged(
    logs: list[EventDict], path: str, runner: Classifier
) -> None:
    body = {"text": CANARY} if path == V1 else {"inputs": [CANARY]}
    token = bearer("predict").removeprefix("Bearer ")
    await House(runner).post(path, body, {"Authorization": f"Bearer {token}"})
    await House(runner).post(path, body, {"Authorization": f"Bearer {token}x"})
    assert logs
    assert CANARY not in str(logs)
    assert token not in str(logs)


async def test_a_flood_is_logged_in_part_and_the_next_line_tells_how_many_were_left_out(
    logs: list[EventDict],
) -> None:
    clock = Clock()
    middleware = RequestMetricsMiddleware(
        PlainTextResponse("fine"), FakeMetrics(), Events(), lines_per_s=2, clock=clock
    )
    for now in (1.0, 1.1, 1.2, 1.9, 2.0):
        clock.now = now
        await call(middleware)
    assert [line["left_out"] for line in logs] == [0, 0, 2]


async def test_failures_of_the_service_are_not_limited(logs: list[EventDict]) -> None:
    logging.getLogger("kaiten").setLevel("ERROR")
    middleware = RequestMetricsMiddleware(
        PlainTextResponse("bad", 500), FakeMetrics(), Events(), lines_per_s=0, clock=Clock()
    )
    for _ in range(3):
        await call(middleware)
    assert [(line["status"], line["log_level"]) for line in logs] == [(500, "error")] * 3


@pytest.mark.parametrize("status", [503, 504])
async def test_what_a_caller_can_bring_about_is_limited_like_any_request(
    logs: list[EventDict], status: int
) -> None:
    middleware = RequestMetricsMiddleware(
        PlainTextResponse("late", status), FakeMetrics(), Events(), lines_per_s=1, clock=Clock()
    )
    for _ in range(3):
        await call(middleware)
    assert [(line["status"], line["log_level"]) for line in logs] == [(status, "warning")]


@pytest.mark.parametrize("path", ["/readyz", "/health"])
@pytest.mark.parametrize(("status", "level"), [(503, "debug"), (500, "error")])
async def test_a_probe_that_finds_no_model_ready_is_no_warning(
    logs: list[EventDict], path: str, status: int, level: str
) -> None:
    middleware = RequestMetricsMiddleware(
        PlainTextResponse("not yet", status), FakeMetrics(), Events(), lines_per_s=1, clock=Clock()
    )
    await call(middleware, path)
    assert [(line["route"], line["log_level"]) for line in logs] == [(path, level)]


async def test_a_second_is_that_of_the_answer_and_never_goes_back(
    logs: list[EventDict],
) -> None:
    clock, ends = Clock(), iter((2.1, 2.2, 2.3, 2.4))

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        clock.now = next(ends)
        await PlainTextResponse("fine")(scope, receive, send)

    middleware = RequestMetricsMiddleware(slow, FakeMetrics(), Events(), lines_per_s=1, clock=clock)
    # As under overload: long ones of the second before end among short ones.
    for begins in (2.0, 1.5, 2.2, 1.6):
        clock.now = begins
        await call(middleware)
    assert len(logs) == 1


async def test_what_is_not_written_takes_nobody_s_place(logs: list[EventDict]) -> None:
    logging.getLogger("kaiten").setLevel("INFO")
    clock = Clock()
    middleware = RequestMetricsMiddleware(
        PlainTextResponse("fine"), FakeMetrics(), Events(), lines_per_s=1, clock=clock
    )
    requests = ((1.0, "/livez"), (1.1, V1), (1.2, V1), (2.0, "/metrics"), (2.1, V1))
    for now, path in requests:
        clock.now = now
        await call(middleware, path)
    assert [(line["route"], line["left_out"]) for line in logs] == [(V1, 0), (V1, 1)]


class Clock:
    """Moves only when the test moves it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


async def call(middleware: RequestMetricsMiddleware, path: str = V1) -> None:
    async def receive() -> Message:
        raise AssertionError

    scope, match = request_to(path), ROUTES.match("POST", path)
    exchange = Exchange("1", route=path, match=match)
    add_exchange(scope, exchange)

    async def answer(message: Message) -> None:
        exchange.status = message.get("status", exchange.status)

    await middleware(scope, receive, answer)
