import pytest

from kaiten.model_kinds import (
    SERVES,
    UNSERVED,
    kind_of_architecture,
    kind_of_columns,
    kind_of_content_type,
    kind_of_field,
    kind_of_path,
    kind_of_task,
)


def test_served_models_are_of_no_other_kind() -> None:
    assert kind_of_task("text-classification") is None
    assert kind_of_architecture("BertForSequenceClassification") is None
    assert kind_of_architecture("LlamaForSequenceClassification") is None
    assert kind_of_columns(["text", "label", "id", "channel"]) is None
    assert not [
        name for name in ("text", "texts", "inputs", "top_k", "model") if kind_of_field(name)
    ]
    assert kind_of_path("/api/v2/predict") is None
    assert kind_of_content_type("application/json") is None


@pytest.mark.parametrize("name", ["tasks", "columns", "fields", "paths", "content_types"])
def test_word_stands_for_one_kind(name: str) -> None:
    words = [word for kind in UNSERVED for word in getattr(kind, name).split()]
    assert len(words) == len({*words})
    assert [word for word in words if word != word.lower()] == []


def test_refusal_says_what_is_served() -> None:
    kind = kind_of_task("Zero shot classification")
    assert kind is not None
    assert kind.refusal == f"Kaiten does not serve models of text pairs yet; {SERVES}"
