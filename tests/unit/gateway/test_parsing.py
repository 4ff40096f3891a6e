import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway import parsing
from gateway.feedback import FeedbackRequest
from gateway.parsing import parse, read
from gateway.protocols.kaiten_v1 import PredictV1Request
from gateway.protocols.kaiten_v2 import PredictV2Request
from gateway.schemas import Body
from kaiten.errors import InvalidInput, MalformedBody
from kaiten.settings.models import GatewaySettings

LIMITS = GatewaySettings(max_inputs=8)
MANY = 100_000
MODELS: list[type[Body]] = [PredictV1Request, PredictV2Request, FeedbackRequest]

# Characters that a scan could take for structure, or that are hard to decode.
ODD = st.sampled_from(
    ['"', "\\", '\\"', ",", "{", "[", ":", "]", "}", "é", "漢", "😀", "\t", " ", "a"]
)
TEXTS = st.lists(ODD, min_size=1, max_size=60).map("".join).filter(lambda text: bool(text.strip()))
BODIES = st.one_of(
    st.builds(lambda text: (PredictV1Request, {"text": text}), TEXTS),
    st.builds(
        lambda inputs, top_k, model: (
            PredictV2Request,
            {"inputs": inputs, "top_k": top_k, "model": model},
        ),
        st.lists(TEXTS, min_size=1, max_size=8),
        st.integers(1, 5),
        st.none() | TEXTS,
    ),
    st.builds(
        lambda labels: (
            FeedbackRequest,
            {"feedback": [{"request_id": "a", "item": 0, "label": label} for label in labels]},
        ),
        st.lists(TEXTS, min_size=1, max_size=8),
    ),
)

REPEATED = b'{"text": "a"' + b', "text": "a"' * MANY + b"}"
HOSTILE = {
    "unknown keys": b'{"text": "a"' + b"".join(b', "k%d": 0' % n for n in range(MANY)) + b"}",
    "empty keys": b'{"text": "a"' + b', "": 0' * MANY + b"}",
    "repeated keys": REPEATED,
    "keys without a comma": b'{"text" "a"' + b' "k"' * MANY + b"}",
    "integers": b'{"inputs": [1' + b",1" * MANY + b"]}",
    "empty strings": b'{"inputs": [""' + b',""' * MANY + b"]}",
    "empty objects": b'{"feedback": [{}' + b",{}" * MANY + b"]}",
    "keys in an item": b'{"feedback": [{"a": 0' + b',"": 0' * MANY + b"}]}",
    "arrays in arrays": b"[" * MANY,
    "objects in objects": b'{"a":' * MANY,
    "quotes": b'"' * MANY,
    "escaped quotes and keys": rb'{"text": "\\\"\\"' + rb', "\"": "\\"' * MANY + b"}",
    "a lone surrogate": rb'{"text": "\ud800"' + b', "": 0' * MANY + b"}",
}


@pytest.fixture
def parse_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the sizes of what the parsers are given."""
    sizes: list[int] = []
    for name in ("from_json", "_load"):
        parser: Callable[..., object] = getattr(parsing, name)

        def record_size(
            body: bytes, parser: Callable[..., object] = parser, **options: bool
        ) -> object:
            sizes.append(len(body))
            return parser(body, **options)

        monkeypatch.setattr(parsing, name, record_size)
    for model in MODELS:
        monkeypatch.setattr(model, "model_validate_json", lambda body: sizes.append(len(body)))
    return sizes


@settings(deadline=None, max_examples=300)
@given(
    body=BODIES,
    form=st.fixed_dictionaries(
        {"indent": st.none() | st.integers(0, 3), "ensure_ascii": st.booleans()}
    ),
)
def test_valid_body_is_parsed_as_pydantic_alone_parses_it(
    body: tuple[type[Body], object], form: dict[str, Any]
) -> None:
    model, value = body
    content = json.dumps(value, **form).encode()
    assert parse(content, model, LIMITS) == model.model_validate_json(content)


@settings(deadline=None, max_examples=300)
@given(content=st.lists(ODD, max_size=80).map(lambda parts: "".join(parts).encode()))
@pytest.mark.parametrize("model", MODELS)
def test_small_garbage_is_refused_as_pydantic_alone_refuses_it(
    model: type[Body], content: bytes
) -> None:
    with pytest.raises((MalformedBody, InvalidInput)):
        parse(content, model, LIMITS)
    with pytest.raises(ValidationError):
        model.model_validate_json(content)


@pytest.mark.parametrize("max_inputs", [1, 8, 256, 10_000])
def test_largest_valid_body_has_room(max_inputs: int) -> None:
    limits = GatewaySettings(
        max_inputs=max_inputs, max_body_bytes=2**24, max_body_memory_bytes=2**25
    )
    item = {"request_id": "a", "item": 0, "label": 'a",:[{'}
    bodies: dict[type[Body], object] = {
        PredictV2Request: {"inputs": ['a",:[{'] * max_inputs, "top_k": 2, "model": "a"},
        FeedbackRequest: {"feedback": [item] * max_inputs},
    }
    for model, value in bodies.items():
        assert parse(json.dumps(value).encode(), model, limits).model_dump() == value


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("model", MODELS)
def test_hostile_body_is_refused_before_most_of_it_is_parsed(
    model: type[Body], content: bytes, parse_sizes: list[int]
) -> None:
    with pytest.raises((MalformedBody, InvalidInput)) as refusal:
        parse(content, model, LIMITS)
    assert 1 <= len(refusal.value.details) <= 20
    assert all(size < 3000 for size in parse_sizes)


@pytest.mark.parametrize(
    ("content", "model", "fields"),
    [
        (HOSTILE["unknown keys"], PredictV1Request, {f"k{number}" for number in range(20)}),
        (HOSTILE["integers"], PredictV2Request, {"inputs.0"}),
        (HOSTILE["empty strings"], PredictV2Request, {"inputs.0"}),
        (b'{"inputs": ["a"' + b',"a"' * MANY + b"]}", PredictV2Request, {"inputs"}),
        (HOSTILE["keys in an item"], FeedbackRequest, {"feedback.0.a", "feedback.0."}),
        (REPEATED, PredictV1Request, {"body"}),
    ],
)
def test_refusal_of_a_hostile_body_names_its_fields(
    content: bytes, model: type[Body], fields: set[str]
) -> None:
    with pytest.raises(InvalidInput) as refusal:
        parse(content, model, LIMITS)
    assert {detail.field for detail in refusal.value.details} == fields


def test_few_repeated_keys_are_taken_as_json_takes_them() -> None:
    body = parse(b'{"text": "a", "text": "b"}', PredictV1Request, LIMITS)
    assert body.text == "b"


async def test_large_bodies_are_parsed_one_at_a_time_beside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[threading.Thread] = []
    original_parse = parsing.parse

    def record_thread(body: bytes, model: type[Body], limits: GatewaySettings) -> Body:
        threads.append(threading.current_thread())
        return original_parse(body, model, limits)

    monkeypatch.setattr(parsing, "parse", record_thread)
    small, large = b'{"text": "a"}', b'{"text": "%s"}' % (b"a" * 40_000)
    await asyncio.gather(*(read(large, PredictV1Request, LIMITS) for _ in range(8)))
    assert threading.current_thread() not in threads
    assert len({*threads}) == 1
    threads.clear()
    await read(small, PredictV1Request, LIMITS)
    assert threads == [threading.current_thread()]


async def test_refusal_comes_back_from_the_thread() -> None:
    with pytest.raises(InvalidInput):
        await read(HOSTILE["unknown keys"], PredictV1Request, LIMITS)
