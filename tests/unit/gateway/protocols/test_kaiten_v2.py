"""Version 2 beside predictions: which versions serve."""

import pytest

from gateway.api_versions import DOCUMENTS
from tests.unit.gateway.house import LABELS, Classifier, House, bearer, error_of

PATH = "/api/v2/models"


def house() -> House:
    return House(Classifier("intent:1.0.0"), Classifier("topic:2.0.0", ready=False))


@pytest.mark.parametrize(
    ("scope", "tags"),
    [
        ("predict", ["intent:1.0.0", "topic:2.0.0"]),
        ("predict:topic", ["topic:2.0.0"]),
        ("predict:retired", []),
    ],
)
async def test_models_are_those_that_the_caller_may_use(scope: str, tags: list[str]) -> None:
    answer = await house().ask("GET", PATH, headers={"Authorization": bearer(scope)})
    assert answer.status_code == 200
    assert [model["model"] for model in answer.json()["models"]] == tags


async def test_a_model_has_its_labels_and_whether_it_is_ready_and_the_default() -> None:
    answer = await house().ask("GET", PATH, headers={"Authorization": bearer("predict")})
    first, second = answer.json()["models"]
    assert first == {
        "model": "intent:1.0.0",
        "name": "intent",
        "version": "1.0.0",
        "labels": [*LABELS],
        "default": True,
        "ready": True,
    }
    assert (second["default"], second["ready"]) == (False, False)


async def test_models_need_the_scope_for_predictions() -> None:
    answer = await house().ask("GET", PATH, headers={"Authorization": bearer("ops")})
    assert (answer.status_code, error_of(answer)["code"]) == (403, "forbidden")
    assert "intent" not in answer.text


async def test_a_time_limit_that_is_no_number_is_a_documented_failure() -> None:
    headers = {"Authorization": bearer("predict"), "X-Request-Timeout-Ms": "soon"}
    answer = await house().ask("GET", PATH, headers=headers)
    document = (await house().ask("GET", DOCUMENTS["2"])).json()
    assert str(answer.status_code) in document["paths"][PATH]["get"]["responses"]
    assert answer.status_code == 422
