"""Reads the body of a model route once, within its limits, and only if it is JSON."""

import asyncio
import re
from collections.abc import Awaitable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.access import ROUTES
from gateway.admission.body_memory import BodyMemory, Reservation
from kaiten.context import current
from kaiten.errors import (
    BodyTimeout,
    BodyTooLarge,
    ClientDisconnected,
    MalformedBody,
    UnsupportedContentEncoding,
    UnsupportedContentType,
)
from kaiten.settings.models import GatewaySettings

_LENGTH = re.compile(r"[0-9]{1,20}")


class BodyMiddleware:
    """Refuses what is no plain JSON, too large or too slow, and hands the whole body inwards.

    BodyMemoryFull if ``memory`` has no room for it, which is reserved before it is read and freed
    once the request has ended. ClientDisconnected if the caller leaves, before the
    body's end or after it; what the request had queued is cancelled.
    """

    def __init__(self, app: ASGIApp, limits: GatewaySettings, memory: BodyMemory) -> None:
        self._app = app
        self._memory = memory
        self._limit_bytes = limits.max_body_bytes
        self._timeout_s = limits.body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        access = ROUTES.get(scope["path"])
        if access is None or not access.model_route:
            await self._app(scope, receive, send)
            return
        declared_bytes = self._check_headers(Headers(scope=scope))
        context = current()
        context.body_bytes = declared_bytes
        with self._memory.reservation(context.subject) as reservation:
            reservation.grow_to(declared_bytes)
            # Nothing here keeps the body: the handler frees it as soon as it has parsed it.
            replay = _replay(await self._read_in_time(receive, reservation))
            await _unless_gone(receive, self._app(scope, replay, send))

    def _check_headers(self, headers: Headers) -> int:
        """Return the declared length, 0 if there is none."""
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
        return int(length)

    async def _read_in_time(self, receive: Receive, reservation: Reservation) -> bytes:
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                return await self._read(receive, reservation)
        except TimeoutError:
            if not limit.expired():
                raise
            raise BodyTimeout(self._timeout_s) from None

    async def _read(self, receive: Receive, reservation: Reservation) -> bytes:
        """Return the body, in however many chunks it comes."""
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self._limit_bytes:
                raise BodyTooLarge(self._limit_bytes)
            reservation.grow_to(size)
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
    """Wait for the answer; cancel it, and raise ClientDisconnected, if the caller leaves first."""
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
            raise ClientDisconnected from None
        raise
    finally:
        watching.cancel()
