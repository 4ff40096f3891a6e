"""Reads the body of a request once, within its limits, and only if it is JSON."""

import asyncio
import re
from collections.abc import Awaitable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.admission.body_memory import BodyMemory, Reservation
from gateway.exchange import exchange_of
from kaiten.errors import (
    BodyTimeout,
    BodyTooLarge,
    ClientDisconnected,
    MalformedBody,
    UnsupportedContentEncoding,
    UnsupportedContentType,
)
from kaiten.model_kinds import kind_of_content_type
from kaiten.settings.models import GatewaySettings

_LENGTH = re.compile(r"[0-9]{1,20}")


class BodyMiddleware:
    """Puts the whole body into the exchange, on routes that have one.

    Memory for it is reserved before it is read, and freed once the request has ended.

    Raises:
        UnsupportedContentType: The body is not JSON.
        UnsupportedContentEncoding: The body is compressed.
        BodyTooLarge: The body is over the limit.
        BodyTimeout: The body does not arrive in time.
        BodyMemoryFull: ``memory`` has no room for it.
        ClientDisconnected: The caller leaves before its answer; what the request had queued is
            cancelled.

    """

    def __init__(self, app: ASGIApp, limits: GatewaySettings, memory: BodyMemory) -> None:
        self._app = app
        self._memory = memory
        self._limit_bytes = limits.max_body_bytes
        self._timeout_s = limits.body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        if exchange.spec is None or exchange.spec.request is None:
            await self._app(scope, receive, send)
            return
        exchange.declared_bytes = self._check_headers(Headers(scope=scope))
        with self._memory.reservation(exchange.subject) as reservation:
            reservation.grow_to(exchange.declared_bytes)
            exchange.body = await self._read_in_time(receive, reservation)
            await _unless_gone(receive, self._app(scope, receive, send))

    def _check_headers(self, headers: Headers) -> int:
        """Return the declared length, 0 if there is none."""
        content_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if content_type != "application/json":
            kind = kind_of_content_type(content_type)
            raise UnsupportedContentType(kind.refusal if kind else "")
        # Nothing here inflates a body, so a small one cannot become a large one.
        if headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise UnsupportedContentEncoding
        length = headers.get("Content-Length", "0")
        if not _LENGTH.fullmatch(length):
            raise MalformedBody("its Content-Length is not a length")
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
