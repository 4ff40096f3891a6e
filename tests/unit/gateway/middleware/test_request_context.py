import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.middleware.request_context import RequestContextMiddleware
from gateway.response_headers import ResponseHeaders
from gateway.services import Services
from kaiten.context import RequestContext, current
from tests.unit.gateway.house import V1, House

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{PARENT}-01"


def outermost(app: ASGIApp, services: Services) -> ASGIApp:
    headers = ResponseHeaders(services.routes, services.settings)
    return RequestContextMiddleware(app, services.routes, headers, services.is_draining)


async def context_of(path: str, *headers: tuple[bytes, bytes]) -> RequestContext:
    """Return the context that a request gets."""
    contexts: list[RequestContext] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        contexts.append(current())

    async def do_nothing(*_: object) -> None: ...

    # The outermost middleware alone: others would reject unknown paths.
    middleware = outermost(app, House().services)
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "headers": headers,
        "client": ("203.0.113.9", 1),
    }
    await middleware(scope, do_nothing, do_nothing)  # type: ignore[arg-type]
    return contexts[0]


async def test_a_callers_trace_is_taken() -> None:
    assert (await context_of(V1, (b"traceparent", GOOD.encode()))).trace_id == TRACE


@pytest.mark.parametrize(
    "trace",
    [
        "",
        TRACE,
        f"00-{TRACE}-{PARENT}",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"01-{TRACE}-{PARENT}-01-more",
        f"{GOOD}-more",
        f"{GOOD}\n",
        f" {GOOD}",
        f"00-{TRACE[:-1]}g-{PARENT}-01",
        f"00-{TRACE[:-1]}\u00fc-{PARENT}-01",
    ],
)
async def test_a_trace_in_another_form_is_none(trace: str) -> None:
    assert (await context_of(V1, (b"traceparent", trace.encode()))).trace_id is None


async def test_of_two_traces_neither_is_believed() -> None:
    twice = ((b"traceparent", GOOD.encode()),) * 2
    assert (await context_of(V1, *twice)).trace_id is None


async def test_the_first_of_two_request_ids_is_taken() -> None:
    headers = (b"x-request-id", b"first"), (b"x-request-id", b"second")
    assert (await context_of(V1, *headers)).request_id == "first"


@pytest.mark.parametrize(
    ("path", "route"),
    [
        (V1, V1),
        ("/elsewhere", None),
        (f"{V1}/", None),
        ("/static_content/swagger-ui.css", "/static_content/{file}"),
        ("/static_content/invented", "/static_content/{file}"),
    ],
)
async def test_a_request_is_known_by_its_routes_template(path: str, route: str | None) -> None:
    context = await context_of(path)
    assert (context.route, context.client) == (route, "203.0.113.9")


@pytest.mark.parametrize("draining", [False, True])
async def test_answers_close_their_connections_while_the_worker_drains(*, draining: bool) -> None:
    house = House()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # By the time of the answer, not of the request.
        house.draining = draining
        await PlainTextResponse("answer")(scope, receive, send)

    middleware = outermost(app, house.services)
    scope = {"type": "http", "method": "GET", "path": V1, "headers": []}
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    await middleware(scope, _unread, send)
    assert ((b"connection", b"close") in messages[0]["headers"]) == draining
    assert messages[1]["body"] == b"answer"


async def _unread() -> Message:
    raise AssertionError
