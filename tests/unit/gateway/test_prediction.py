import asyncio
from collections.abc import Sequence
from datetime import datetime

import pytest

from kaiten.errors import BlankText
from tests.unit.gateway.house import (
    BENTO,
    CANARY,
    LABELS,
    MAX_WORDS,
    TAG,
    V1,
    V2,
    Answer,
    Classifier,
    House,
    Json,
    bearer,
    error_of,
)

MANY = (V2, BENTO)


def labels_of(prediction: Json) -> list[str]:
    return [candidate["label"] for candidate in prediction["top_k"]]


async def test_v1_returns_the_most_probable_label() -> None:
    answer = await House().post(V1, {"text": "delivery delivery delivery account"})
    body = answer.json()
    assert answer.status_code == 200
    assert datetime.fromisoformat(body.pop("timestamp")).utcoffset() is not None
    assert body.pop("confidence") == pytest.approx(4 / 8)
    assert body == {
        "result": 1,
        "label": "delivery",
        "truncated": False,
        "model": TAG,
        "request_id": answer.headers["X-Request-ID"],
    }


@pytest.mark.parametrize("path", MANY)
async def test_v2_returns_a_prediction_for_each_text(path: str) -> None:
    answer = await House().post(path, {"inputs": ["account account"], "top_k": 2})
    body = answer.json()
    assert answer.status_code == 200
    assert body == {
        "model": TAG,
        "request_id": answer.headers["X-Request-ID"],
        "predictions": [
            {
                "label": "account",
                "index": 2,
                "score": pytest.approx(3 / 6),
                "top_k": [
                    {"label": "account", "index": 2, "score": pytest.approx(3 / 6)},
                    {"label": "billing", "index": 0, "score": pytest.approx(1 / 6)},
                ],
                "truncated": False,
            }
        ],
    }


async def test_text_over_the_maximum_length_is_flagged_and_counted() -> None:
    house = House()
    # The classifier of the house reads so many words.
    long = "account " * (MAX_WORDS + 1)
    v1_answer = await house.post(V1, {"text": long})
    v2_answer = await house.post(V2, {"inputs": [long, "account", long]})
    assert v1_answer.json()["truncated"] is True
    assert [prediction["truncated"] for prediction in v2_answer.json()["predictions"]] == [
        True,
        False,
        True,
    ]
    assert [event.truncated for event in house.events.emitted].count(True) == 3


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (V1, {"text": "gone"}, "text"),
        (V2, {"inputs": ["account", "gone"]}, "inputs.1"),
    ],
)
async def test_text_that_is_nothing_to_the_model_is_refused_by_its_field(
    path: str, body: Json, field: str
) -> None:
    class Blank(Classifier):
        async def predict(self, inputs: Sequence[str], deadline: float) -> list[Answer]:
            raise BlankText(list(inputs).index("gone"))

    answer = await House(Blank()).post(path, body)
    assert answer.status_code == 422
    (detail,) = answer.json()["error"]["details"]
    assert detail["field"] == field
    assert "empty to the model" in detail["reason"]


@pytest.mark.parametrize("path", MANY)
async def test_answers_come_in_the_order_of_the_inputs(path: str) -> None:
    inputs = [*LABELS, *reversed(LABELS)]
    answer = await House().post(path, {"inputs": inputs})
    assert [prediction["label"] for prediction in answer.json()["predictions"]] == inputs


@pytest.mark.parametrize("path", MANY)
async def test_top_k_is_one_unless_asked(path: str) -> None:
    answer = await House().post(path, {"inputs": ["billing"]})
    assert labels_of(answer.json()["predictions"][0]) == ["billing"]


@pytest.mark.parametrize("path", MANY)
async def test_top_k_comes_most_probable_first(path: str) -> None:
    text = "other other other account account billing"
    answer = await House().post(path, {"inputs": [text], "top_k": 4})
    prediction = answer.json()["predictions"][0]
    assert labels_of(prediction) == ["other", "account", "billing", "delivery"]
    assert prediction["label"] == "other"


@pytest.mark.parametrize("top_k", [4, 5, 1000, 10**30])
async def test_top_k_ends_at_the_number_of_labels(top_k: int) -> None:
    answer = await House().post(V2, {"inputs": ["delivery"], "top_k": top_k})
    assert sorted(labels_of(answer.json()["predictions"][0])) == sorted(LABELS)


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("none of them", ["billing", "delivery", "account", "other"]),
        ("other account", ["account", "other", "billing", "delivery"]),
    ],
)
async def test_equal_scores_come_in_the_order_of_the_labels(text: str, order: list[str]) -> None:
    answer = await House().post(V2, {"inputs": [text], "top_k": 4})
    assert labels_of(answer.json()["predictions"][0]) == order


@pytest.mark.parametrize(
    ("model", "answers"),
    [
        (None, "intent:1.0.0"),
        ("intent", "intent:1.0.0"),
        ("intent:1.0.0", "intent:1.0.0"),
        ("topic", "topic:2.1.0"),
        ("topic:2.1.0", "topic:2.1.0"),
    ],
)
@pytest.mark.parametrize("path", MANY)
async def test_a_model_is_asked_by_name_or_version(
    path: str, model: str | None, answers: str
) -> None:
    house = House(Classifier("intent:1.0.0"), Classifier("topic:2.1.0"))
    answer = await house.post(path, {"inputs": ["billing"], "model": model})
    assert answer.json()["model"] == answers


async def test_v1_asks_the_first_model() -> None:
    house = House(Classifier("topic:2.1.0"), Classifier("intent:1.0.0"))
    assert (await house.post(V1, {"text": "billing"})).json()["model"] == "topic:2.1.0"


async def test_an_unknown_model_is_answered_with_those_that_the_caller_may_use() -> None:
    house = House(Classifier("intent:1.0.0"), Classifier("topic:2.0.0"))
    headers = {"Authorization": bearer("predict:topic")}
    answer = await house.post(V2, {"inputs": ["a"], "model": "other"}, headers)
    assert answer.status_code == 404
    assert "topic:2.0.0" in answer.text
    assert "intent" not in answer.text


@pytest.mark.parametrize("model", ["intent:9.9.9", "Intent", "intent:", CANARY])
@pytest.mark.parametrize("path", MANY)
async def test_an_unknown_model_is_answered_with_those_served(path: str, model: str) -> None:
    house = House(Classifier("topic:2.1.0"), Classifier("intent:1.0.0"))
    answer = await house.post(path, {"inputs": ["billing"], "model": model})
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (404, "unknown_model")
    assert error["details"] == [
        {"field": "model", "reason": "is not served; use one of intent:1.0.0, topic:2.1.0"}
    ]
    assert CANARY not in answer.text


@pytest.mark.parametrize(
    ("path", "body"), [(V1, {"text": "my über delivery"}), (V2, {"inputs": ["my über delivery"]})]
)
async def test_an_event_holds_an_item_with_its_answer(path: str, body: Json) -> None:
    house = House()
    await house.post(path, body)
    (event,) = house.events.emitted
    assert (event.model_tag, event.label) == (TAG, "delivery")
    assert (event.text, event.tokens) == ("my über delivery", 3)
    assert event.confidence == pytest.approx(2 / 5)


async def test_an_event_does_not_show_its_text() -> None:
    house = House()
    await house.post(V2, {"inputs": [CANARY, f"billing {CANARY}"]})
    assert len(house.events.emitted) == 2
    assert CANARY not in repr(house.events.emitted)


async def test_health_tells_whether_every_model_can_answer() -> None:
    assert (await House().ask("GET", "/health")).json()["status"] == "healthy"
    half = House(Classifier(), Classifier("topic:2.1.0", ready=False))
    answer = await half.ask("GET", "/health")
    assert (answer.status_code, error_of(answer)["code"]) == (503, "not_ready")
    assert (await half.post(V2, {"inputs": ["billing"]})).status_code == 200


async def test_many_labels_are_ranked_in_turns() -> None:
    class Wide(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.labels = tuple(f"label-{number}" for number in range(5000))

    turns = 0
    done = False

    async def count_turns() -> None:
        nonlocal turns
        while not done:
            turns += 1
            await asyncio.sleep(0)

    counter = asyncio.create_task(count_turns())
    house = House(Wide())
    answer = await house.post(V2, {"inputs": ["label-7"] * 8, "top_k": 5000})
    wide, turns = turns, 0
    await house.post(V2, {"inputs": ["label-7"] * 8, "top_k": 1})
    done = True
    await counter
    # Between any two of its eight predictions, others ran.
    assert wide >= turns + 7
    for prediction in answer.json()["predictions"]:
        assert prediction["label"] == prediction["top_k"][0]["label"] == "label-7"
        assert len(prediction["top_k"]) == 5000
