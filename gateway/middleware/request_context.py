"""Gives each request its context and its route, and each answer its headers."""

import re
import uuid
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api_versions import negotiate
from gateway.exchange import Exchange, add_exchange
from gateway.response_headers import ResponseHeaders
from gateway.routes import RouteTable
from kaiten.context import bind
from kaiten.errors import ClientDisconnected, RequestError

HEADER = "X-Request-ID"
_ID = HEADER.lower().encode()
_TRACE = b"traceparent"
# What a caller may choose goes into logs and answers, so it is held to a plain form.
_ACCEPTED_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
# https://www.w3.org/TR/trace-context: a trace or a parent of zeros only is invalid.
_ACCEPTED_TRACE = re.compile(rb"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_CLOSE = (b"connection", b"close")
# BentoML names itself in what it answers on its own.
_SERVER = b"server"
# uvloop's words, in an error of no type of its own.
_CONNECTION_CLOSED = "the handler is closed"


class RequestContextMiddleware:
    """The outermost middleware: creates the exchange, and sends every answer.

    It takes the caller's X-Request-ID if it is plain and makes one otherwise, and takes the trace
    of a ``traceparent`` that is valid to the letter. A request for /api/predict is from here on one
    for the route of its version. A version that is rejected is noted, to be raised inside the error
    middleware.
    """

    def __init__(
        self,
        app: ASGIApp,
        table: RouteTable,
        headers: ResponseHeaders,
        is_draining: Callable[[], bool],
    ) -> None:
        self._app = app
        self._table = table
        self._headers = headers
        self._is_draining = is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = self._exchange(scope)
        add_exchange(scope, exchange)
        bind(exchange)

        async def send_answer(message: Message) -> None:
            starts = message["type"] == "http.response.start"
            if starts:
                if exchange.before_answer is not None:
                    await exchange.before_answer(exchange)
                message["headers"] = self._answer_headers(message, exchange)
                exchange.started = True
            try:
                await send(message)
            except RuntimeError as error:
                # uvicorn drops messages to a caller that has left, but of a connection's
                # requests it notifies only the last: the first of two still writes to it.
                if _CONNECTION_CLOSED in str(error):
                    raise ClientDisconnected from None
                raise
            if starts:
                exchange.status = message["status"]

        await self._app(scope, receive, send_answer)

    def _exchange(self, scope: Scope) -> Exchange:
        match = self._table.match(scope["method"], scope["path"])
        version_error = None
        if match is not None:
            try:
                match = negotiate(self._table, match, scope["headers"])
            except RequestError as error:
                version_error = error
        request_id, trace_id = _ids(scope)
        client = scope.get("client")
        return Exchange(
            request_id,
            trace_id=trace_id,
            route=match.spec.path if match is not None else None,
            client=client[0] if client else None,
            match=match,
            version_error=version_error,
        )

    def _answer_headers(self, message: Message, exchange: Exchange) -> list[tuple[bytes, bytes]]:
        headers = [pair for pair in message.get("headers", ()) if pair[0] != _SERVER]
        headers += self._headers.of_route(exchange.spec)
        headers += exchange.headers
        headers.append((_ID, exchange.request_id.encode()))
        # By now, not by when the request came: nothing sent later on the connection is answered.
        if self._is_draining():
            headers.append(_CLOSE)
        return headers


def _ids(scope: Scope) -> tuple[str, str | None]:
    """Return the id and the trace of a request."""
    request_id, traces = None, []
    for name, value in scope["headers"]:
        if name == _ID and request_id is None:
            request_id = value
        elif name == _TRACE:
            traces.append(value)
    plain = request_id is not None and _ACCEPTED_ID.fullmatch(request_id)
    # Of two traces, neither can be trusted.
    trace = _ACCEPTED_TRACE.fullmatch(traces[0]) if len(traces) == 1 else None
    return (
        request_id.decode() if request_id is not None and plain else uuid.uuid4().hex,
        trace[1].decode() if trace else None,
    )
