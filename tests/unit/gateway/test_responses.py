import asyncio

import pytest
from starlette.types import Message

from gateway.responses import JsonResponse


async def _never() -> Message:
    raise AssertionError


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 200_000])
async def test_answer_is_sent_whole_with_its_length(size: int) -> None:
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    content = bytes(number % 251 for number in range(size))
    await JsonResponse(content)({"type": "http"}, _never, send)
    start, *bodies = messages
    assert start["status"] == 200
    assert dict(start["headers"])[b"content-length"] == str(size).encode()
    assert dict(start["headers"])[b"content-type"] == b"application/json"
    assert b"".join(message["body"] for message in bodies) == content
    assert [message.get("more_body", False) for message in bodies] == [True] * (len(bodies) - 1) + [
        False
    ]


async def test_large_answer_waits_for_its_reader() -> None:
    part_sizes: list[int] = []
    reads = asyncio.Semaphore(3)

    async def send(message: Message) -> None:
        await reads.acquire()
        part_sizes.append(len(message.get("body", b"")))

    answering = asyncio.create_task(JsonResponse(b"x" * 2**20)({"type": "http"}, _never, send))
    for _ in range(10):
        await asyncio.sleep(0)
    # The start, and two parts; the rest is not handed on before the reader takes it.
    assert len(part_sizes) == 3
    assert sum(part_sizes) <= 2**18
    for _ in range(20):
        reads.release()
    await answering
    assert sum(part_sizes) == 2**20
