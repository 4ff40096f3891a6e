"""Gives each request its id and its trace, for everything further in."""

import re
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.access import template_of
from kaiten.context import RequestContext, bind

HEADER = "X-Request-ID"
_ID = HEADER.lower().encode()
_TRACE = b"traceparent"
# What a caller may choose goes into logs and answers, so it is held to a plain form.
_ACCEPTED_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
# https://www.w3.org/TR/trace-context: a trace of zeros only, or a parent, is none.
_ACCEPTED_TRACE = re.compile(rb"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class RequestContextMiddleware:
    """Takes the caller's X-Request-ID if it is plain, else makes one, and answers with it.

    The trace of a ``traceparent`` that is valid to the letter goes into the context, and the
    headers that were put there go into the answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = _context(scope)
        bind(context)
        answered = (_ID, context.request_id.encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], answered, *context.headers]
            await send(message)

        await self._app(scope, receive, send_with_id)


def _context(scope: Scope) -> RequestContext:
    request_id, traces = None, []
    for name, value in scope["headers"]:
        if name == _ID and request_id is None:
            request_id = value
        elif name == _TRACE:
            traces.append(value)
    plain = request_id is not None and _ACCEPTED_ID.fullmatch(request_id)
    # Of two, neither can be believed.
    trace = _ACCEPTED_TRACE.fullmatch(traces[0]) if len(traces) == 1 else None
    client = scope.get("client")
    return RequestContext(
        request_id.decode() if request_id is not None and plain else uuid.uuid4().hex,
        trace_id=trace[1].decode() if trace else None,
        endpoint=template_of(scope["path"]),
        client=client[0] if client else None,
    )
