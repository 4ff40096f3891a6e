"""Calls the handler of a route; BentoML's app answers those that have none."""

from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import FIRST_ERROR_STATUS, foreign_response
from gateway.exchange import Exchange, exchange_of
from gateway.parsing import read
from gateway.responses import JsonResponse
from gateway.services import Services


class DispatchMiddleware:
    """Calls handlers itself: BentoML's context and two routers cost more than all middleware."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await call_handler(exchange_of(scope), self._services)
        if response is None:
            await _pass_on(self._app, scope, receive, send)
        else:
            await response(scope, receive, send)


async def call_handler(exchange: Exchange, services: Services) -> Response | None:
    """Return the answer of the route's handler, None if it has none."""
    match = exchange.match
    if match is None or match.spec.handler is None:
        return None
    spec, handler = match.spec, match.spec.handler
    if spec.request is None:
        answer = await handler(exchange, services, **match.parameters)
    else:
        content, exchange.body = exchange.body, b""
        body = await read(content, spec.request, services.settings.gateway)
        # Freed before the handler waits for a model.
        del content
        answer = await handler(exchange, services, body, **match.parameters)
    return JsonResponse(answer.model_dump_json()) if isinstance(answer, BaseModel) else answer


async def _pass_on(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Let another app answer, and put a failure of its own into our envelope.

    A failure is held back until the app is done: Starlette answers an exception in its own words,
    and then raises it.
    """
    failure: Message | None = None

    async def send_unless_failure(message: Message) -> None:
        nonlocal failure
        if message["type"] == "http.response.start" and message["status"] >= FIRST_ERROR_STATUS:
            failure = message
        if failure is None:
            await send(message)

    await app(scope, receive, send_unless_failure)
    if failure is not None:
        headers = Headers(raw=failure["headers"])
        await foreign_response(failure["status"], headers)(scope, receive, send)
