import pytest
from starlette.types import Message, Receive, Scope, Send

from tests.unit.gateway.house import CANARY, GOOD, LIMITS, V1, House, error_of, fields_of
from tests.unit.gateway.middleware.test_request_metrics import request_to

SOME = [(b"host", b"kaiten"), (b"accept", b"*/*")]


async def status_and_body(
    headers: list[tuple[bytes, bytes]], path: str = "/livez"
) -> tuple[int, bytes]:
    """Return the status and the body for a request with just these headers, as uvicorn has them."""
    messages: list[Message] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        messages.append(message)

    scope = {**request_to(path), "method": "GET", "headers": headers}
    await House(inner=inner).app(scope, receive, send)
    return messages[0]["status"], messages[1]["body"]


@pytest.mark.parametrize(
    ("count", "status"), [(LIMITS.max_headers - 2, 200), (LIMITS.max_headers - 1, 431)]
)
async def test_headers_are_counted(count: int, status: int) -> None:
    answer_status, body = await status_and_body([*SOME, *[(b"x-more", CANARY.encode())] * count])
    assert answer_status == status
    assert (b"headers_too_large" in body) == (status == 431)
    assert CANARY.encode() not in body


@pytest.mark.parametrize(("more", "status"), [(0, 200), (1, 431)])
async def test_headers_are_weighed(more: int, status: int) -> None:
    # As they were sent: a colon, a space and the end of the line are theirs.
    rest = LIMITS.max_header_bytes - sum(len(name) + len(value) + 4 for name, value in SOME)
    answer_status, _ = await status_and_body([*SOME, (b"x", b"y" * (rest - 5 + more))])
    assert answer_status == status


@pytest.mark.parametrize(
    ("name", "field"),
    [
        (b"host", "Host"),
        (b"content-length", "Content-Length"),
        (b"content-type", "Content-Type"),
        (b"authorization", "Authorization"),
    ],
)
async def test_what_contradicts_itself_is_malformed(name: bytes, field: str) -> None:
    status, body = await status_and_body(
        [(name, b"1"), (b"accept", b"*/*"), (name, CANARY.encode())]
    )
    assert status == 400
    assert b'"malformed_request"' in body
    assert f'"field": "{field}"'.encode() in body
    assert CANARY.encode() not in body


@pytest.mark.parametrize("headers", [[(b"host", b"a")] * 2, [(b"accept", b"a"), (b"accept", b"b")]])
async def test_what_only_repeats_itself_is_taken(headers: list[tuple[bytes, bytes]]) -> None:
    assert (await status_and_body(headers))[0] == 200


async def test_a_refusal_is_an_answer_like_any_other() -> None:
    house = House()
    answer = await house.post(V1, GOOD[V1], {"X-More": "x" * LIMITS.max_header_bytes})
    assert (answer.status_code, error_of(answer)["code"]) == (431, "headers_too_large")
    assert fields_of(answer) == ["headers"]
    assert house.metrics.answered == [(V1, "", 431)]
