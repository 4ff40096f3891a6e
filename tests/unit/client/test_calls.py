import json
from collections.abc import Sequence

import pytest

from kaiten_client import InvalidRequest
from kaiten_client.calls import feedback_call, prediction_call
from tests.unit.client.house import Given


def body_of(inputs: Sequence[str], top_k: int = 1, model: str | None = None) -> Given:
    return json.loads(prediction_call(inputs, top_k, model).content or b"")


def test_omitted_options_are_not_sent() -> None:
    assert body_of(("a",)) == {"inputs": ["a"], "top_k": 1}
    assert body_of(["a"], 3, "intent") == {"inputs": ["a"], "top_k": 3, "model": "intent"}


def test_texts_arrive_as_they_are() -> None:
    texts = ["Wo ist mein Päckchen?", "荷物", "\\", '"', "\n", "😀", "\ud800", "\\\ud800"]
    assert body_of(texts)["inputs"] == texts


def test_other_letters_take_no_more_than_utf8() -> None:
    assert "荷物".encode() in (prediction_call(["荷物"], 1, None).content or b"")


@pytest.mark.parametrize(
    ("inputs", "fields"),
    [
        ("canary", ["inputs"]),
        (["a", None, "b", float("nan")], ["inputs.1", "inputs.3"]),
        ([b"canary"], ["inputs.0"]),
        ([["canary"]] * 1000, [f"inputs.{index}" for index in range(20)]),
    ],
)
def test_invalid_inputs_are_named_and_not_sent(inputs: Given, fields: list[str]) -> None:
    with pytest.raises(InvalidRequest) as raised:
        prediction_call(inputs, 1, None)
    assert [detail.field for detail in raised.value.details] == fields
    assert raised.value.status is None
    assert len(raised.value.request_id) == 32
    assert "canary" not in str(raised.value)


@pytest.mark.parametrize(
    ("labels", "fields"),
    [
        ("canary", [f"feedback.{index}" for index in range(6)]),
        ([("a", 0, "b"), ("canary", "0", "b"), ("a", True, "b"), ("a", 0)], ["1", "2", "3"]),
        ([None], ["feedback.0"]),
    ],
)
def test_malformed_label_is_named_and_not_sent(labels: Given, fields: list[str]) -> None:
    with pytest.raises(InvalidRequest) as raised:
        feedback_call(labels)
    named = [detail.field for detail in raised.value.details]
    assert named == [f"feedback.{field.removeprefix('feedback.')}" for field in fields]
    assert "canary" not in str(raised.value)


def test_a_call_shows_no_text() -> None:
    assert "canary" not in repr(prediction_call(["canary"], 1, None))
