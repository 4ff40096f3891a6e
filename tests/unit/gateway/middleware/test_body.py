import asyncio
import gzip
import json
from collections.abc import AsyncIterator

import pytest

from tests.unit.gateway.house import (
    GOOD,
    LIMITS,
    PREDICTIONS,
    V1,
    House,
    Stuck,
    error_of,
    fields_of,
)

HASTY = LIMITS.model_copy(update={"body_timeout_s": 0.01})


async def endless() -> AsyncIterator[bytes]:
    yield b'{"text": "my '
    await asyncio.Event().wait()


@pytest.mark.parametrize("path", PREDICTIONS)
async def test_a_body_that_does_not_arrive_is_given_up_with_its_connection(path: str) -> None:
    house = House(gateway=HASTY)
    answer = await house.post(path, endless())
    assert (answer.status_code, error_of(answer)["code"]) == (408, "body_timeout")
    assert fields_of(answer) == ["body"]
    assert answer.headers["Connection"] == "close"
    assert house.metrics.answered == [(path, "", 408)]


async def test_a_deadline_that_comes_first_is_the_deadline() -> None:
    answer = await House().post(V1, endless(), {"X-Request-Timeout-Ms": "10"})
    assert answer.status_code == 504


async def test_only_the_body_has_to_arrive_in_its_time() -> None:
    answer = await House(Stuck(), gateway=HASTY, request_timeout_s=0.05).post(V1, GOOD[V1])
    assert answer.status_code == 504


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", "x-unknown", ""])
@pytest.mark.parametrize("path", PREDICTIONS)
async def test_a_compressed_body_is_refused_and_not_read(path: str, encoding: str) -> None:
    reads: list[int] = []

    async def body() -> AsyncIterator[bytes]:
        reads.append(1)
        yield gzip.compress(json.dumps(GOOD[path]).encode())

    answer = await House().post(path, body(), {"Content-Encoding": encoding})
    assert (answer.status_code, error_of(answer)["code"]) == (415, "unsupported_content_encoding")
    assert fields_of(answer) == ["Content-Encoding"]
    assert answer.headers["Accept-Encoding"] == "identity"
    assert reads == []


async def test_a_body_that_says_it_is_not_compressed_is_taken() -> None:
    answer = await House().post(V1, GOOD[V1], {"Content-Encoding": "Identity"})
    assert answer.status_code == 200
