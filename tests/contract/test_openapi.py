import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate

from gateway.access import ROUTES
from gateway.errors import INTERNAL, STATUS_AND_CODE
from gateway.openapi import document
from kaiten.errors import InferenceFailed, QueueFull
from kaiten.sections import Exposure
from tests.unit.gateway.house import (
    BENTO,
    GOOD,
    LIMITS,
    PREDICTIONS,
    V1,
    V2,
    Classifier,
    House,
    Json,
    Raising,
    bearer,
)

DOCUMENT = document(LIMITS)
# The document and its page describe, and are not described.
PAGES = {path for path, access in ROUTES.items() if access.exposure == "docs"}


def problems(answer: Json, schema: Json) -> list[str]:
    validator = OAS31Validator({**schema, "components": DOCUMENT["components"]})
    return [error.message for error in validator.iter_errors(answer)]


def schema_of(path: str, method: str, status: int) -> Json:
    answers = DOCUMENT["paths"][path][method]["responses"]
    return answers[str(status)]["content"]["application/json"]["schema"]


def test_the_document_is_openapi() -> None:
    validate(DOCUMENT)


async def test_the_document_is_served() -> None:
    assert (await House().ask("GET", "/docs.json")).json() == DOCUMENT


def test_every_route_is_documented_and_no_other() -> None:
    assert set(DOCUMENT["paths"]) == set(ROUTES) - PAGES


@pytest.mark.parametrize("path", sorted(set(ROUTES) - PAGES))
def test_a_route_documents_whether_it_asks_for_a_token(path: str) -> None:
    (operation,) = DOCUMENT["paths"][path].values()
    assert ("security" in operation) == (ROUTES[path].scope is not None)


@pytest.mark.parametrize(("exposure", "asked"), [("open", False), ("token", True)])
def test_the_metrics_are_documented_as_they_are_exposed(exposure: Exposure, *, asked: bool) -> None:
    limits = LIMITS.model_copy(update={"metrics": exposure})
    operation = document(limits)["paths"]["/metrics"]["get"]
    assert ("security" in operation) == asked
    assert set(operation["responses"]) == ({"200", "401", "403"} if asked else {"200"})


def test_closed_metrics_are_not_documented() -> None:
    limits = LIMITS.model_copy(update={"metrics": "closed"})
    assert set(DOCUMENT["paths"]) - set(document(limits)["paths"]) == {"/metrics"}


@pytest.mark.parametrize("path", PREDICTIONS)
def test_a_prediction_documents_every_failure(path: str) -> None:
    answers = DOCUMENT["paths"][path]["post"]["responses"]
    documented = {
        (int(status), code)
        for status, answer in answers.items()
        if status != "200"
        for code in answer["description"].split(" or ")
    }
    assert documented == {*STATUS_AND_CODE.values(), INTERNAL}


def test_the_limits_in_force_are_documented() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    inputs = schemas["PredictV2Request"]["properties"]["inputs"]
    assert inputs["maxItems"] == LIMITS.max_inputs
    assert inputs["items"]["maxLength"] == LIMITS.max_text_chars
    text = schemas["PredictV1Request"]["properties"]["text"]
    assert text["maxLength"] == LIMITS.max_text_chars


def test_a_document_is_made_anew_for_other_limits() -> None:
    other = LIMITS.model_copy(update={"max_inputs": 3})
    inputs = document(other)["components"]["schemas"]["PredictV2Request"]["properties"]["inputs"]
    assert inputs["maxItems"] == 3
    assert document(LIMITS) == DOCUMENT


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *GOOD.items(),
        (V2, {"inputs": ["a", "b"], "top_k": 4, "model": "intent"}),
        (BENTO, {"inputs": ["a"], "top_k": 1, "model": None}),
    ],
)
async def test_what_is_taken_and_answered_is_as_documented(path: str, body: Json) -> None:
    content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    assert problems(body, content["schema"]) == []
    answer = await House().post(path, body)
    assert answer.status_code == 200
    assert problems(answer.json(), schema_of(path, "post", 200)) == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (V1, {}),
        (V1, {"text": 1}),
        (V1, {"text": "a", "top_k": 1}),
        (V1, {"text": "x" * (LIMITS.max_text_chars + 1)}),
        (V2, {"inputs": []}),
        (V2, {"inputs": ["a"] * (LIMITS.max_inputs + 1)}),
        (V2, {"inputs": ["a"], "top_k": 0}),
        (V2, {"inputs": ["a"], "model": 1}),
        (V2, {"inputs": ["x" * (LIMITS.max_text_chars + 1)]}),
    ],
)
async def test_what_the_document_forbids_is_refused(path: str, body: Json) -> None:
    content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    assert problems(body, content["schema"])
    assert (await House().post(path, body)).status_code == 422


async def test_health_is_as_documented() -> None:
    answer = await House().ask("GET", "/health")
    assert problems(answer.json(), schema_of("/health", "get", 200)) == []
    answer = await House(Classifier(ready=False)).ask("GET", "/health")
    assert problems(answer.json(), schema_of("/health", "get", 503)) == []


@pytest.mark.parametrize(
    ("runner", "headers", "body", "status"),
    [
        (Classifier(), {}, b"{", 400),
        (Classifier(), {"Authorization": ""}, {}, 401),
        (Classifier(), {"Authorization": bearer("ops")}, None, 403),
        (Classifier(), {"Content-Type": "text/plain"}, {}, 415),
        (Classifier(), {}, {}, 422),
        (Raising(QueueFull(1)), {}, None, 429),
        (Raising(InferenceFailed()), {}, None, 500),
        (Classifier(ready=False), {}, None, 503),
    ],
)
@pytest.mark.parametrize("path", PREDICTIONS)
async def test_a_failure_is_as_documented(
    path: str, runner: Classifier, headers: dict[str, str], body: Json, status: int
) -> None:
    answer = await House(runner).post(path, GOOD[path] if body is None else body, headers)
    assert answer.status_code == status
    assert problems(answer.json(), schema_of(path, "post", status)) == []


async def test_the_page_asks_no_other_host() -> None:
    page = (await House().ask("GET", "/docs")).text
    assert 'url: "docs.json"' in page
    assert "//" not in page
