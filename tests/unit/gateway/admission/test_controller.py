"""Admission answers or admits a request before it has a task."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.admission.controller import Admission
from gateway.admission.deadlines import RECEIVED
from gateway.auth.authenticator import Authenticator
from gateway.auth.signing_secret import SigningSecret
from gateway.exchange import Exchange, add_exchange
from gateway.middleware.early_answer import EARLY_ANSWER, EarlyAnswerMiddleware, Refusal
from kaiten.errors import (
    HeadersTooLarge,
    KaitenError,
    MalformedRequest,
    NotReady,
    Overloaded,
    QueueFull,
)
from kaiten.settings.loader import Settings
from tests.unit.gateway.house import (
    AUTH,
    SECRET,
    V1,
    V2,
    Answer,
    Classifier,
    FakeMetrics,
    House,
    bearer,
    callers,
)

PROBES = ("/livez", "/healthz", "/readyz", "/health")


class Full(Classifier):
    """Has no room for a subject."""

    def __init__(self, tag: str = "intent:1.0.0", *, subject: str = "alice") -> None:
        super().__init__(tag)
        self._subject = subject

    def retry_after_s(
        self, subject: str, inputs: int, deadline: float, ahead: int = 0
    ) -> int | None:
        return 3 if subject.endswith(f"|{self._subject}") else None


class Small(Classifier):
    """Has room for four inputs of whatever subject."""

    def retry_after_s(
        self, subject: str, inputs: int, deadline: float, ahead: int = 0
    ) -> int | None:
        return 3 if inputs > 4 else None

    async def predict(self, inputs: Sequence[str], deadline: float) -> list[Answer]:
        if len(inputs) > 4:
            raise QueueFull(3)
        return await super().predict(inputs, deadline)


class CallRecorder(Classifier):
    """Notes the deadlines that it is asked with, and how many inputs come before."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[float, int]] = []

    def retry_after_s(
        self, subject: str, inputs: int, deadline: float, ahead: int = 0
    ) -> int | None:
        self.calls.append((deadline, ahead))
        return None


@dataclass
class Door:
    """An admission, and what it has done with each request: started it, or answered it."""

    runners: tuple[Classifier, ...] = (Classifier(),)
    draining: bool = False
    metrics: FakeMetrics = field(default_factory=FakeMetrics)
    started: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings = Settings.model_construct(home=Path("/nowhere"), auth=AUTH)
        self._callers = callers(settings, SigningSecret(SECRET, development=False))
        self.services = House(*self.runners, draining=self.draining).services
        self.admission = Admission(
            self.services,
            self._callers.authenticator,
            self.metrics,
            time_limit_s=30,
        )
        self.admission.edge = EarlyAnswerMiddleware(PlainTextResponse("not early"))

    @property
    def refusals(self) -> list[str]:
        return self.metrics.refused_early

    @property
    def authenticator(self) -> Authenticator:
        return self._callers.authenticator

    async def remember(self, authorization: str) -> None:
        await self.authenticator.authenticate([authorization], [])

    async def fill_up(self) -> None:
        """Send what no one vouches for until one is refused."""
        with suppress(Overloaded):
            for _ in range(5000):
                await self.ask(V1)
        assert self.refusals == ["overloaded"]

    async def ask(
        self,
        path: str,
        authorization: str = "",
        *,
        method: str = "POST",
        body_bytes: int = 0,
        crowded: bool = False,
        received: float | None = None,
        time_limit_ms: str | None = None,
    ) -> int | None:
        """Return the status of an early answer, or None for a request that starts or waits."""
        headers = [(b"authorization", authorization.encode())] if authorization else []
        if body_bytes:
            headers.append((b"content-length", b"%d" % body_bytes))
        if time_limit_ms is not None:
            headers.append((b"x-request-timeout-ms", time_limit_ms.encode()))
        scope: Scope = {"type": "http", "method": method, "path": path, "headers": headers}
        scope[RECEIVED] = received or time.monotonic()
        early: list[ASGIApp] = []
        start: Callable[[], None] = lambda: self.started.append(path)  # noqa: E731
        self.admission.admit(scope, start, early.append, crowded=crowded)
        return await _status(early[0], scope) if early else None


async def _status(app: ASGIApp, scope: Scope) -> int:
    messages: list[Message] = []
    match = House().services.routes.match(scope["method"], scope["path"])
    add_exchange(scope, Exchange("1", match=match))

    async def send(message: Message) -> None:
        messages.append(message)

    async def receive() -> Message:
        raise AssertionError("an early answer reads nothing")

    await app(scope, receive, send)
    assert EARLY_ANSWER in scope
    status: int = messages[0]["status"]
    return status


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", PROBES)
async def test_probes_are_answered_beside_a_full_backlog(path: str, method: str) -> None:
    door = Door()
    await door.fill_up()
    assert await door.ask(path, method=method) == 200
    assert await door.ask(path, method=method, crowded=True) == 200


@pytest.mark.parametrize("path", ["/readyz", "/health"])
async def test_readiness_is_red_while_a_model_is_not_ready(path: str) -> None:
    door = Door((Classifier(ready=False),))
    with pytest.raises(NotReady):
        await door.ask(path, method="GET")
    assert await door.ask("/livez", method="GET") == 200


async def test_readiness_is_red_while_the_worker_drains() -> None:
    door = Door(draining=True)
    with pytest.raises(NotReady):
        await door.ask("/readyz", method="GET")


@pytest.mark.parametrize("path", [*PROBES, "/metrics"])
def test_the_first_bytes_of_a_probe_are_urgent(path: str) -> None:
    admission = Door().admission
    assert admission.is_urgent(f"GET {path} HTTP/1.1\r\n".encode())
    assert admission.is_urgent(f"HEAD {path} HTTP/1.1\r\n".encode())
    assert not admission.is_urgent(f"POST {path} HTTP/1.1\r\n".encode())
    assert not admission.is_urgent(f"GET {path}/more HTTP/1.1\r\n".encode())


async def test_another_method_of_a_probe_goes_the_usual_way() -> None:
    door = Door()
    assert await door.ask("/livez", method="POST") is None
    assert door.started == ["/livez"]


async def test_a_full_queue_refuses_before_the_body_is_read() -> None:
    door, token = Door((Full(),)), bearer("predict")
    await door.remember(token)
    with pytest.raises(QueueFull) as refusal:
        await door.ask(V1, token)
    assert refusal.value.retry_after_s == 3
    assert (door.refusals, door.started) == (["queue_full"], [])


async def test_a_body_that_was_refused_is_refused_again_before_it_is_read() -> None:
    door, token = Door((Small(),)), bearer("predict")
    await door.remember(token)
    principal = await door.authenticator.authenticate([token], [])
    exchange = Exchange("id", principal=principal, declared_bytes=5000)
    assert await door.ask(V2, token, body_bytes=5000) is None
    with pytest.raises(QueueFull):
        await door.services.prediction.predict(exchange, ["text"] * 5, str)

    with pytest.raises(QueueFull):
        await door.ask(V2, token, body_bytes=5000)
    assert await door.ask(V2, token, body_bytes=5001) is None
    assert await door.ask(V2, token) is None
    assert (door.refusals, door.started) == (["queue_full"], [V2, V2, V2])


async def test_another_subject_is_not_refused_for_it() -> None:
    door, token = Door((Full(),)), bearer("predict", subject="bob")
    await door.remember(token)
    assert await door.ask(V1, token) is None
    assert door.started == [V1]


async def test_a_model_with_room_may_be_the_one_asked() -> None:
    door, token = Door((Full(), Classifier("other:1.0.0"))), bearer("predict")
    await door.remember(token)
    assert await door.ask(V1, token) is None


@pytest.mark.parametrize("authorization", ["", "Bearer made.up.token", "Basic YTpi"])
async def test_an_unknown_caller_is_told_nothing_of_the_queue(authorization: str) -> None:
    door = Door((Full(),))
    assert await door.ask(V1, authorization) is None
    assert door.started == [V1]


async def test_strangers_take_no_known_callers_place() -> None:
    door, token = Door(), bearer("predict")
    await door.remember(token)
    await door.fill_up()
    assert door.refusals == ["overloaded"]
    assert await door.ask(V1, token) is None
    assert await door.ask("/metrics", method="GET") is None


async def test_a_flood_without_credentials_takes_no_room_from_a_new_token() -> None:
    door = Door()
    await door.fill_up()
    assert await door.ask(V1, bearer("predict")) is None
    with pytest.raises(Overloaded):
        await door.ask(V1)


async def test_what_waited_is_refused_if_the_queue_has_filled_up() -> None:
    door, token = Door(), bearer("predict")
    await door.remember(token)
    while not door.admission._backlog._waiting:
        await door.ask(V1, token)
    started = len(door.started)
    door.admission._services = House(Full()).services
    door.admission._backlog._iterate()
    assert (len(door.started), door.refusals) == (started, ["queue_full"])


async def test_before_the_edge_is_built_requests_go_the_usual_way() -> None:
    door = Door()
    door.admission.edge = None
    assert await door.ask("/livez", method="GET") is None
    assert door.started == ["/livez"]


async def test_an_early_answer_replaces_the_app() -> None:
    async def early(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("early", 418)(scope, receive, send)

    layer = EarlyAnswerMiddleware(PlainTextResponse("late"))
    assert (
        await _status(layer, {"type": "http", "method": "GET", "path": V1, EARLY_ANSWER: early})
        == 418
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MalformedRequest(), "malformed_request"),
        (HeadersTooLarge(100, "headers"), "headers_too_large"),
    ],
)
async def test_what_cannot_be_parsed_is_refused_and_counted(
    error: KaitenError, reason: str
) -> None:
    door = Door()
    scope: Scope = {"type": "http", "method": "GET", "path": "", "headers": []}
    scope[EARLY_ANSWER] = Refusal(error)
    early: list[ASGIApp] = []
    door.admission.admit(scope, lambda: None, early.append, crowded=True)
    with pytest.raises(type(error)):
        await _status(early[0], scope)
    assert door.refusals == [reason]


async def test_a_request_that_waited_until_it_was_due_is_not_started() -> None:
    door, token = Door(), bearer("predict")
    await door.remember(token)
    while not door.admission._backlog._waiting:
        await door.ask(V1, token, received=time.monotonic() - 29.9)
    door.admission._time_limit_s = 29.8
    await door.ask(V1, token, received=time.monotonic() - 30)
    started = len(door.started)
    door.admission._backlog._iterate()
    assert len(door.started) == started + 1
    assert door.refusals == ["deadline_exceeded"]


@pytest.mark.parametrize(("time_limit_ms", "left_s"), [("2000", 2), ("x", math.inf), ("90000", 30)])
async def test_the_queues_are_asked_with_the_callers_time_limit(
    time_limit_ms: str, left_s: float
) -> None:
    runner = CallRecorder()
    door, token = Door((runner,)), bearer("predict")
    await door.remember(token)
    await door.ask(V1, token, received=100, time_limit_ms=time_limit_ms)
    assert runner.calls == [(100 + left_s, 0)]


async def test_the_queues_are_asked_with_the_requests_that_wait_before_it() -> None:
    runner = CallRecorder()
    door, token = Door((runner,)), bearer("predict")
    await door.remember(token)
    while not door.admission._backlog._waiting:
        await door.ask(V1, token)
    for _ in range(2):
        await door.ask(V1, token)
    assert [ahead for _, ahead in runner.calls[-3:]] == [0, 1, 2]
