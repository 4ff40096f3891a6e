"""A version's wire is frozen: what would break a caller is caught, the rest is let through."""

from collections.abc import Callable
from copy import deepcopy

import pytest

from tests.contract.compatibility import breaks
from tests.contract.written import document_of
from tests.unit.gateway.house import V2, Json

DOCUMENT = document_of("2")


def schema(made: Json, name: str) -> Json:
    return made["components"]["schemas"][name]


def prediction(made: Json) -> Json:
    return made["paths"][V2]["post"]


def parameter(made: Json, name: str) -> Json:
    (found,) = (each for each in prediction(made)["parameters"] if each["name"] == name)
    return found


def codes(made: Json, status: str) -> Json:
    answer = prediction(made)["responses"][status]["content"]["application/json"]["schema"]
    return answer["allOf"][1]["properties"]["error"]["properties"]["code"]["enum"]


def changed(change: Callable[[Json], object]) -> list[str]:
    new = deepcopy(DOCUMENT)
    change(new)
    assert new != DOCUMENT
    return breaks(DOCUMENT, new)


def required(made: Json) -> Json:
    return schema(made, "PredictV2Request")["required"]


def inputs(made: Json) -> Json:
    return schema(made, "PredictV2Request")["properties"]["inputs"]


BREAKS: dict[str, tuple[Callable[[Json], object], str]] = {
    "a route": (lambda made: made["paths"].pop(V2), f"POST {V2}: is gone"),
    "a status": (lambda made: prediction(made)["responses"].pop("429"), ": 429 is gone"),
    "a code": (
        lambda made: codes(made, "400").remove("malformed_body"),
        "'malformed_body' is gone",
    ),
    "a header": (
        lambda made: prediction(made)["responses"]["429"]["headers"].pop("Retry-After"),
        "429: the header Retry-After is gone",
    ),
    "a header's certainty": (
        lambda made: made["components"]["headers"]["Retry-After"].pop("required"),
        "Retry-After: is no longer sure",
    ),
    "a field of an answer": (
        lambda made: schema(made, "PredictV2Response")["properties"].pop("model"),
        "200.model: is gone",
    ),
    "a field deep in an answer": (
        lambda made: schema(made, "ScoredLabel")["properties"].pop("score"),
        "200.predictions[].top_k[].score: is gone",
    ),
    "a field of the error": (
        lambda made: schema(made, "ErrorBody")["properties"].pop("details"),
        "401.error.details: is gone",
    ),
    "a field's certainty": (
        lambda made: schema(made, "PredictV2Response")["required"].remove("request_id"),
        "200.request_id: is no longer sure",
    ),
    "a type of an answer": (
        lambda made: schema(made, "ScoredLabel")["properties"]["index"].update(type="string"),
        "200.predictions[].top_k[].index: type is 'string', was 'integer'",
    ),
    "a bound of an answer": (
        lambda made: schema(made, "ScoredLabel")["properties"]["score"].pop("maximum"),
        "200.predictions[].top_k[].score: maximum",
    ),
    "a newly required field": (lambda made: required(made).append("model"), "model: is newly req"),
    "a field of a request": (
        lambda made: schema(made, "PredictV2Request")["properties"].pop("top_k"),
        "body.top_k: is gone",
    ),
    "a type of a request": (
        lambda made: inputs(made)["items"].update(type="integer"),
        "body.inputs[]: type is 'integer', was 'string'",
    ),
    "null in a request": (
        lambda made: schema(made, "PredictV2Request")["properties"]["model"]["anyOf"].pop(),
        "body.model: is one of other types",
    ),
    "a lower limit": (lambda made: inputs(made).update(maxItems=2), "body.inputs: maxItems is 2"),
    "a pattern": (lambda made: inputs(made)["items"].update(pattern="a"), "body.inputs[]: pattern"),
    "the body's type": (
        lambda made: prediction(made)["requestBody"]["content"].clear(),
        "application/json is no longer taken",
    ),
    "the answer's type": (
        lambda made: prediction(made)["responses"]["200"]["content"].clear(),
        "200: application/json is no longer given",
    ),
    "a parameter": (
        lambda made: prediction(made)["parameters"].clear(),
        "the parameter X-Request-Timeout-Ms is gone",
    ),
    "a value of a parameter": (
        lambda made: parameter(made, "API-Version")["schema"]["enum"].remove("v2"),
        "API-Version: 'v2' is gone",
    ),
    "a newly required parameter": (
        lambda made: parameter(made, "X-Request-ID").update(required=True),
        "the parameter X-Request-ID is newly required",
    ),
    "other credentials": (
        lambda made: prediction(made).update(security=[{"key": []}]),
        "asks for other credentials",
    ),
    "credentials": (
        lambda made: made["paths"]["/livez"]["get"].update(security=[{"bearer": []}]),
        "GET /livez: asks for credentials",
    ),
}

COMPATIBLE: dict[str, Callable[[Json], object]] = {
    "a route": lambda made: made["paths"].update({"/more": made["paths"][V2]}),
    "a status": lambda made: prediction(made)["responses"].update({"418": {"description": ""}}),
    "a code": lambda made: codes(made, "429").append("tired"),
    "a header": lambda made: prediction(made)["responses"]["200"]["headers"].update(
        {"Server-Timing": {"schema": {"type": "string"}}}
    ),
    "a field of an answer": lambda made: schema(made, "ScoredLabel")["properties"].update(
        {"rank": {"type": "integer"}}
    ),
    "an optional field": lambda made: schema(made, "PredictV2Request")["properties"].update(
        {"language": {"type": "string"}}
    ),
    "a field no longer required": lambda made: required(made).remove("inputs"),
    "a higher limit": lambda made: inputs(made).update(maxItems=9999),
    "no limit": lambda made: inputs(made).pop("maxItems"),
    "an optional parameter": lambda made: prediction(made)["parameters"].append(
        {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string"}}
    ),
    "other words": lambda made: prediction(made).update(summary="Classify"),
    "another way to prove oneself": lambda made: prediction(made)["security"].append({"key": []}),
}


def test_the_same_document_breaks_nothing() -> None:
    assert breaks(DOCUMENT, deepcopy(DOCUMENT)) == []


@pytest.mark.parametrize("name", BREAKS)
def test_what_would_break_a_caller_is_caught(name: str) -> None:
    change, told = BREAKS[name]
    assert any(told in line for line in changed(change)), changed(change)


@pytest.mark.parametrize("name", COMPATIBLE)
def test_what_no_caller_would_miss_is_let_through(name: str) -> None:
    assert changed(COMPATIBLE[name]) == []
