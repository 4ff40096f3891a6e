"""Gives each request its id, for everything further in."""

import re
import uuid

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kaiten.context import RequestContext, bind

HEADER = "X-Request-ID"
_RAW_HEADER = HEADER.lower().encode()
# What a caller may choose goes into logs and answers, so it is held to a plain form.
_ACCEPTED = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestContextMiddleware:
    """Takes the caller's X-Request-ID if it is plain, else makes one, and answers with it.

    The answer also gets the headers that were put into the context.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent = Headers(scope=scope).get(HEADER, "")
        request_id = sent if _ACCEPTED.fullmatch(sent) else uuid.uuid4().hex
        context = RequestContext(request_id)
        bind(context)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = (_RAW_HEADER, request_id.encode())
                message["headers"] = [*message["headers"], own, *context.headers]
            await send(message)

        await self._app(scope, receive, send_with_id)
