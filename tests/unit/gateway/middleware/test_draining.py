"""A worker that drains closes each connection with the answer on it."""

import asyncio

from starlette.types import Message, Receive, Scope, Send

from gateway.middleware.draining import DrainingMiddleware

HEADER = (b"a", b"b")


class Server:
    """A server whose answers wait until ``answering`` is set."""

    def __init__(self) -> None:
        self.draining = False
        self.answering = asyncio.Event()
        self.app = DrainingMiddleware(self._answer, lambda: self.draining)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.answering.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [HEADER]})
        await send({"type": "http.response.body", "body": b"answer"})

    async def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers of an answer."""
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request"}

        async def send(message: Message) -> None:
            sent.append(message)

        await self.app({"type": "http"}, receive, send)
        assert sent[1] == {"type": "http.response.body", "body": b"answer"}
        headers: list[tuple[bytes, bytes]] = sent[0]["headers"]
        return headers


async def test_answers_close_their_connections_once_it_drains() -> None:
    server = Server()
    under_way = asyncio.create_task(server.headers())
    await asyncio.sleep(0)
    server.draining = True
    server.answering.set()
    closing = [HEADER, (b"connection", b"close")]
    assert await under_way == closing
    assert await server.headers() == closing


async def test_connections_stay_open_before() -> None:
    server = Server()
    server.answering.set()
    assert await server.headers() == [HEADER]
