"""Reads the body of a model route once, within the limit, and only if it is JSON."""

import asyncio
import re
from collections.abc import Awaitable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.access import ROUTES
from gateway.parsing import parse
from kaiten.errors import (
    BodyTimeout,
    BodyTooLarge,
    CallerGone,
    MalformedBody,
    UnsupportedContentEncoding,
    UnsupportedContentType,
)
from kaiten.sections import Gateway

_LENGTH = re.compile(r"[0-9]{1,20}")


class BodyMiddleware:
    """Refuses what is no plain JSON, too large or too slow, and hands the whole body inwards.

    CallerGone if the caller leaves, before the body's end or after it; what the request had queued
    is cancelled.
    """

    def __init__(self, app: ASGIApp, limits: Gateway) -> None:
        self._app = app
        self._limit_bytes = limits.max_body_bytes
        self._timeout_s = limits.body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        access = ROUTES.get(scope["path"])
        if access is None or not access.model_route:
            await self._app(scope, receive, send)
            return
        self._check_headers(Headers(scope=scope))
        body = await self._read_in_time(receive)
        if access.checked_as is not None:
            parse(body, access.checked_as)
        await _unless_gone(receive, self._app(scope, _replay(body), send))

    def _check_headers(self, headers: Headers) -> None:
        if headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
            raise UnsupportedContentType
        # Nothing here inflates a body, so a small one can not become a large one.
        if headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise UnsupportedContentEncoding
        length = headers.get("Content-Length", "0")
        if not _LENGTH.fullmatch(length):
            raise MalformedBody("its Content-Length is no length")
        if int(length) > self._limit_bytes:
            raise BodyTooLarge(self._limit_bytes)

    async def _read_in_time(self, receive: Receive) -> bytes:
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                return await self._read(receive)
        except TimeoutError:
            if not limit.expired():
                raise
            raise BodyTimeout(self._timeout_s) from None

    async def _read(self, receive: Receive) -> bytes:
        """Return the body, in however many chunks it comes."""
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise CallerGone
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self._limit_bytes:
                raise BodyTooLarge(self._limit_bytes)
            if not message.get("more_body", False):
                return b"".join(chunks)


def _replay(body: bytes) -> Receive:
    """Return a receive that gives the body once, and then waits: it is not told of the end."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    async def replay() -> Message:
        return messages.pop() if messages else await never

    return replay


async def _unless_gone(receive: Receive, answering: Awaitable[None]) -> None:
    """Wait for the answer; cancel it, and raise CallerGone, if the caller leaves first."""
    answering_task = asyncio.current_task()
    left = False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        if answering_task is not None:
            answering_task.cancel()

    watching = asyncio.create_task(watch())
    try:
        await answering
    except asyncio.CancelledError:
        # Ours, unless the deadline or the server's end came as well.
        if left and answering_task is not None and not answering_task.uncancel():
            raise CallerGone from None
        raise
    finally:
        watching.cancel()
