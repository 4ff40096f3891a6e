import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.middleware.timeout_backstop import BackStopMiddleware

NEVER = 3600
START: Message = {"type": "http.response.start", "status": 200, "headers": []}
BODY: Message = {"type": "http.response.body", "body": b"done"}


async def send_request(app: ASGIApp, limit_s: float, kind: str = "http") -> list[Message]:
    """Return what a request is answered."""
    messages: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        messages.append(message)

    await BackStopMiddleware(app, limit_s)({"type": kind}, receive, send)
    return messages


async def answer_slowly(scope: Scope, receive: Receive, send: Send) -> None:
    await send(START)
    # Several turns of the event loop, for a timer that is due to end it.
    for _ in range(5):
        await asyncio.sleep(0)
    await send(BODY)


async def wait_forever(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.Event().wait()


@pytest.fixture
async def timers(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.TimerHandle]:
    """Return the timers that are set from now on."""
    handles: list[asyncio.TimerHandle] = []
    loop = asyncio.get_running_loop()
    call_at = loop.call_at

    def spy(when: float, call: Callable[..., object], *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        handles.append(call_at(when, call, *arguments, **options))
        return handles[-1]

    monkeypatch.setattr(loop, "call_at", spy)
    return handles


async def test_an_answer_leaves_no_timer(timers: list[asyncio.TimerHandle]) -> None:
    assert await send_request(answer_slowly, NEVER) == [START, BODY]
    assert timers
    assert all(timer.cancelled() for timer in timers)


async def test_no_answer_in_time_is_a_504() -> None:
    start, body = await send_request(wait_forever, 0)
    assert (start["status"], body["body"]) == (504, b"")


async def test_an_answer_that_has_begun_is_not_ended() -> None:
    assert await send_request(answer_slowly, 0) == [START, BODY]


async def test_a_timeout_of_the_apps_own_is_its_own() -> None:
    async def raise_timeout(scope: Scope, receive: Receive, send: Send) -> None:
        raise TimeoutError("of something else")

    with pytest.raises(TimeoutError, match="something else"):
        await send_request(raise_timeout, NEVER)


async def test_what_is_no_request_passes() -> None:
    assert await send_request(answer_slowly, 0, kind="lifespan") == [START, BODY]
