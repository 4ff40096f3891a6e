import pytest
from starlette.responses import PlainTextResponse, Response
from starlette.types import Message, Receive, Scope, Send
from structlog.typing import EventDict

from gateway import security_log
from gateway.errors import error_headers, error_response
from gateway.exchange import Exchange, add_exchange
from gateway.middleware.errors import ErrorsMiddleware
from gateway.routes import ErrorRenderer, RouteKind, RouteMatch, RouteSpec
from kaiten.context import bind
from kaiten.errors import Forbidden, SetupError


def in_plain_text(error: Exception) -> Response:
    """Render an error as a foreign protocol would."""
    return PlainTextResponse("no", 403, error_headers(error))


async def messages_of(error: Exception, render: ErrorRenderer) -> list[Message]:
    """Return the messages that a route sends whose handler raises the error."""
    spec = RouteSpec(
        method="GET",
        path="/v9/a",
        scope="ops",
        kind=RouteKind.ADMIN,
        handler=None,
        render_error=render,
    )
    exchange = Exchange(request_id="one", match=RouteMatch(spec, ("GET",)))
    scope: Scope = {"type": "http"}
    add_exchange(scope, exchange)
    messages: list[Message] = []

    async def fail(_: Scope, __: Receive, ___: Send) -> None:
        raise error

    async def receive() -> Message:
        raise AssertionError("nothing is read")

    async def send(message: Message) -> None:
        messages.append(message)

    bind(exchange)
    await ErrorsMiddleware(fail)(scope, receive, send)
    return messages


@pytest.mark.parametrize("render", [error_response, in_plain_text])
async def test_a_refusal_is_logged_once_whatever_renders_it(
    logs: list[EventDict], render: ErrorRenderer
) -> None:
    messages = await messages_of(Forbidden("ops"), render)
    security_log.security_log.end_period()
    assert [line["event"] for line in logs] == ["forbidden"]
    assert messages[0]["status"] == 403
    assert b"insufficient_scope" in dict(messages[0]["headers"])[b"www-authenticate"]


@pytest.mark.parametrize("error", [RuntimeError("x"), SetupError("x")])
async def test_an_error_that_no_caller_sees_is_logged_with_its_traceback(
    logs: list[EventDict], error: Exception
) -> None:
    messages = await messages_of(error, error_response)
    assert messages[0]["status"] == 500
    assert [(line["event"], line["log_level"]) for line in logs] == [("request_failed", "error")]
    assert logs[0]["exc_info"] is True
