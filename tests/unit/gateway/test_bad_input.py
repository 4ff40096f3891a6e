import json
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from gateway.exchange import exchange_of
from tests.unit.gateway.house import (
    BENTO,
    CANARY,
    GOOD,
    LIMITS,
    PREDICTIONS,
    V1,
    V2,
    House,
    Json,
    bearer,
    error_of,
    fields_of,
)

LONG = CANARY + "x" * LIMITS.max_text_chars

MALFORMED = {
    "no JSON": f"text={CANARY}".encode(),
    "cut short": f'{{"text": "{CANARY}'.encode(),
    "more behind it": f'{{"text": "a"}} {CANARY}'.encode(),
    "single quotes": f"{{'text': '{CANARY}'}}".encode(),
    "empty": b"",
    "not UTF-8": f'{{"text": "{CANARY}'.encode() + b'\xff"}',
    "UTF-8 of a surrogate": f'{{"text": "{CANARY}'.encode() + b'\xed\xa0\x80"}',
    "UTF-16": f'{{"text": "{CANARY}"}}'.encode("utf-16"),
    "deeply nested": b"[" * 100_000,
    "very long integer": b'{"text": "%s", "top_k": %s}' % (CANARY.encode(), b"1" * 5000),
}

# Each with the fields that the answer names.
INVALID_ON_ANY_ROUTE: dict[str, tuple[Json, list[str]]] = {
    "array": ([CANARY], ["body"]),
    "string": (CANARY, ["body"]),
    "number": (4711, ["body"]),
    "null": (None, ["body"]),
}
INVALID_V1: dict[str, tuple[Json, list[str]]] = {
    "no text": ({}, ["text"]),
    "unknown field": ({"text": CANARY, "texts": CANARY}, ["texts"]),
    "field of v2": ({"text": CANARY, "top_k": 1}, ["top_k"]),
    "null": ({"text": None}, ["text"]),
    "number": ({"text": 4711}, ["text"]),
    "boolean": ({"text": True}, ["text"]),
    "array": ({"text": [CANARY]}, ["text"]),
    "object": ({"text": {"text": CANARY}}, ["text"]),
    "empty": ({"text": ""}, ["text"]),
    "blank": ({"text": " \n\t\u2003"}, ["text"]),
    "NUL": ({"text": f"{CANARY}\x00"}, ["text"]),
    "lone surrogate": ({"text": f"{CANARY}\ud800"}, ["text"]),
    "too long": ({"text": LONG}, ["text"]),
}
INVALID_V2: dict[str, tuple[Json, list[str]]] = {
    "no inputs": ({"top_k": 1}, ["inputs"]),
    "field of v1": ({"text": CANARY}, ["inputs", "text"]),
    "unknown field": ({"inputs": [CANARY], "topk": 1}, ["topk"]),
    "inputs null": ({"inputs": None}, ["inputs"]),
    "inputs a string": ({"inputs": CANARY}, ["inputs"]),
    "inputs an object": ({"inputs": {"0": CANARY}}, ["inputs"]),
    "inputs empty": ({"inputs": []}, ["inputs"]),
    "10,000 inputs": ({"inputs": [CANARY] * 10_000}, ["inputs"]),
    "the first of wrong types": ({"inputs": [CANARY, 1, None, [CANARY]]}, ["inputs.1"]),
    "5,000 wrong types": ({"inputs": [1] * 5_000}, ["inputs.0"]),
    "empty within": ({"inputs": ["", CANARY]}, ["inputs.0"]),
    "blank within": ({"inputs": [CANARY, " \n\u2003"]}, ["inputs.1"]),
    "NUL within": ({"inputs": [CANARY, f"{CANARY}\x00"]}, ["inputs.1"]),
    "lone surrogate within": ({"inputs": [CANARY, f"\udfff{CANARY}"]}, ["inputs.1"]),
    "too long within": ({"inputs": [LONG, CANARY, LONG]}, ["inputs.0", "inputs.2"]),
    "top_k zero": ({"inputs": [CANARY], "top_k": 0}, ["top_k"]),
    "top_k negative": ({"inputs": [CANARY], "top_k": -1}, ["top_k"]),
    "top_k a string": ({"inputs": [CANARY], "top_k": "1"}, ["top_k"]),
    "top_k a boolean": ({"inputs": [CANARY], "top_k": True}, ["top_k"]),
    "top_k a float": ({"inputs": [CANARY], "top_k": 1.5}, ["top_k"]),
    "top_k not a number": ({"inputs": [CANARY], "top_k": float("nan")}, ["top_k"]),
    "top_k null": ({"inputs": [CANARY], "top_k": None}, ["top_k"]),
    "model a number": ({"inputs": [CANARY], "model": 1}, ["model"]),
    "model an array": ({"inputs": [CANARY], "model": [CANARY]}, ["model"]),
}
INVALID = [
    pytest.param(path, body, fields, id=f"{path}-{name}")
    for path, cases in [
        (V1, INVALID_ON_ANY_ROUTE | INVALID_V1),
        (V2, INVALID_ON_ANY_ROUTE | INVALID_V2),
        (BENTO, INVALID_ON_ANY_ROUTE | INVALID_V2),
    ]
    for name, (body, fields) in cases.items()
]


async def assert_answers(house: House, path: str) -> None:
    answer = await house.post(path, GOOD[path])
    assert answer.status_code == 200


async def in_chunks(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


def refusal_of(answer: httpx.Response) -> tuple[int, str, list[str]]:
    return answer.status_code, error_of(answer)["code"], fields_of(answer)


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("path", PREDICTIONS)
async def test_what_is_no_json_is_malformed(path: str, content: bytes) -> None:
    house = House()
    answer = await house.post(path, content)
    assert refusal_of(answer) == (400, "malformed_body", ["body"])
    assert CANARY not in answer.text
    await assert_answers(house, path)


@pytest.mark.parametrize(("path", "body", "fields"), INVALID)
async def test_what_is_invalid_is_named_and_not_quoted(
    path: str, body: Json, fields: list[str]
) -> None:
    house = House()
    answer = await house.post(path, body)
    status, code, answer_fields = refusal_of(answer)
    assert (status, code) == (422, "invalid_input")
    assert sorted(answer_fields) == sorted(fields)
    assert CANARY not in answer.text
    assert house.events.emitted == []
    await assert_answers(house, path)


@pytest.mark.parametrize("field", ["feld-ü", "\x00\n", "\ud800", "f" * 1000, ""])
async def test_an_unknown_field_is_named_in_short_ascii(field: str) -> None:
    answer = await House().post(V1, {"text": CANARY, field: CANARY})
    assert answer.status_code == 422
    assert answer.content.isascii()
    assert all(len(name) <= 80 for name in fields_of(answer))
    assert CANARY not in answer.text


@pytest.mark.parametrize("bad", ["", "x" * (LIMITS.max_text_chars + 1)])
async def test_the_answer_names_a_few_fields_of_very_many(bad: str) -> None:
    answer = await House().post(V2, {"inputs": [bad] * LIMITS.max_inputs * 200})
    assert answer.status_code == 422
    assert 1 <= len(fields_of(answer)) <= 20


@pytest.mark.parametrize("path", [V2, BENTO])
async def test_the_largest_request_is_answered(path: str) -> None:
    body = {"inputs": ["x" * LIMITS.max_text_chars] * LIMITS.max_inputs}
    answer = await House().post(path, body)
    assert len(answer.json()["predictions"]) == LIMITS.max_inputs


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "application/jsonlines",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=application/json",
        "application/vnd.bentoml+pickle",
        "application/vnd.bentoml+pickle; application/json",
    ],
)
@pytest.mark.parametrize("path", PREDICTIONS)
async def test_other_content_types_are_not_taken(path: str, content_type: str) -> None:
    house = House()
    answer = await house.post(path, GOOD[path], {"Content-Type": content_type})
    assert refusal_of(answer) == (415, "unsupported_content_type", ["Content-Type"])
    await assert_answers(house, path)


@pytest.mark.parametrize("path", PREDICTIONS)
async def test_a_body_needs_a_content_type(path: str) -> None:
    allowed = {"Authorization": bearer("predict")}
    answer = await House().ask("POST", path, json.dumps(GOOD[path]).encode(), allowed)
    assert refusal_of(answer) == (415, "unsupported_content_type", ["Content-Type"])


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
@pytest.mark.parametrize("path", PREDICTIONS)
async def test_json_is_taken_however_it_is_written(path: str, content_type: str) -> None:
    answer = await House().post(path, GOOD[path], {"Content-Type": content_type})
    assert answer.status_code == 200


@pytest.mark.parametrize("path", PREDICTIONS)
async def test_a_body_that_declares_too_much_is_not_read(path: str) -> None:
    reads: list[bytes] = []

    async def body() -> AsyncIterator[bytes]:
        reads.append(b"{}")
        yield b"{}"

    house = House()
    declared = {"Content-Length": str(LIMITS.max_body_bytes + 1)}
    answer = await house.post(path, body(), declared)
    assert refusal_of(answer) == (413, "body_too_large", ["body"])
    assert reads == []
    await assert_answers(house, path)


@pytest.mark.parametrize("path", PREDICTIONS)
async def test_a_body_that_comes_in_chunks_is_read_to_the_limit(path: str) -> None:
    sizes: list[int] = []

    async def body() -> AsyncIterator[bytes]:
        while True:
            sizes.append(LIMITS.max_body_bytes // 4)
            yield b" " * sizes[-1]

    house = House()
    answer = await house.post(path, body())
    assert refusal_of(answer) == (413, "body_too_large", ["body"])
    assert sum(sizes) <= LIMITS.max_body_bytes * 5 / 4
    await assert_answers(house, path)


@pytest.mark.parametrize("path", PREDICTIONS)
async def test_a_body_in_chunks_up_to_the_limit_is_answered(path: str) -> None:
    body = json.dumps(GOOD[path]).encode().ljust(LIMITS.max_body_bytes)
    answer = await House().post(path, in_chunks(body, 60_000))
    assert answer.status_code == 200


@pytest.mark.parametrize("length", ["abc", "-1", "1e3", "0x10", "1 2", b"\xb2", "9" * 5000])
@pytest.mark.parametrize("path", PREDICTIONS)
async def test_a_content_length_that_is_no_length_is_refused(
    path: str, length: str | bytes
) -> None:
    house = House()
    answer = await house.post(path, GOOD[path], {"Content-Length": length})
    assert 400 <= answer.status_code < 500
    assert fields_of(answer)
    await assert_answers(house, path)


async def test_the_app_gets_the_whole_body_at_once() -> None:
    bodies: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        bodies.append(exchange_of(scope).body)
        await PlainTextResponse("")(scope, receive, send)

    async def body() -> AsyncIterator[bytes]:
        yield b'{"text'
        yield b'": "billing"}'

    await House(inner=app).post(V1, body())
    assert bodies == [b'{"text": "billing"}']


@pytest.mark.parametrize(
    ("body", "field", "kind"),
    [
        ({"features": [0.1] * 28}, "features", "tabular models"),
        ({"features": [0.1] * 20_000}, "features", "tabular models"),
        ({"instances": [[0.1]]}, "instances", "tabular models"),
        ({"image": "aGVsbG8="}, "image", "image models"),
        ({"audio": "aGVsbG8="}, "audio", "audio models"),
        ({"query": CANARY, "documents": [CANARY]}, "documents", "rerankers"),
        ({"premise": CANARY, "hypothesis": CANARY}, "premise", "models of text pairs"),
        ({"tokens": [CANARY]}, "tokens", "token classifiers"),
        ({"messages": [{"role": "user"}]}, "messages", "text generation models"),
        ({"sentences": [CANARY]}, "sentences", "embedding models"),
    ],
)
@pytest.mark.parametrize("path", PREDICTIONS)
async def test_request_for_a_kind_that_is_not_served_is_refused_as_such(
    path: str, body: Json, field: str, kind: str
) -> None:
    answer = await House().post(path, body)
    details = {detail["field"]: detail["reason"] for detail in error_of(answer)["details"]}
    assert answer.status_code == 422
    assert details[field].startswith(f"Kaiten does not serve {kind} yet; it serves text")
    assert CANARY not in answer.text


@pytest.mark.parametrize("item", [[0.1, 0.2], 0.1, {"image": "a"}, None])
async def test_input_that_is_not_a_text_is_refused_with_what_is_served(item: Json) -> None:
    for path, body in ((V1, {"text": item}), (V2, {"inputs": [item]})):
        (detail,) = error_of(await House().post(path, body))["details"]
        assert "Kaiten serves no other input yet; it serves text classifiers" in detail["reason"]


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [("image/png", "image models"), ("audio/wav", "audio models"), ("text/csv", "tabular models")],
)
async def test_body_of_a_kind_that_is_not_served_is_refused_as_such(
    content_type: str, kind: str
) -> None:
    answer = await House().post(V1, b"bytes", {"Content-Type": f"{content_type}; a=b"})
    (detail,) = error_of(answer)["details"]
    assert detail["reason"].startswith(f"send application/json; Kaiten does not serve {kind} yet")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/embeddings", "embedding models"),
        ("/embed", "embedding models"),
        ("/rerank", "rerankers"),
        ("/v1/chat/completions", "text generation models"),
    ],
)
async def test_path_of_a_kind_that_is_not_served_is_refused_as_such(path: str, kind: str) -> None:
    answer = await House().post(path, {"input": CANARY})
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (404, "not_found")
    assert [detail["field"] for detail in error["details"]] == ["path"]
    assert f"does not serve {kind} yet; it serves text" in error["details"][0]["reason"]


@pytest.mark.parametrize(("path", "field"), [(V1, "text"), (V2, "inputs"), (BENTO, "inputs")])
async def test_body_without_a_text_is_refused_with_what_is_served(path: str, field: str) -> None:
    details = error_of(await House().post(path, {"vector": [0.1]}))["details"]
    reasons = {detail["field"]: detail["reason"] for detail in details}
    assert "it serves text classifiers" in reasons[field]
