"""A version's wire is frozen: what would break a caller is caught, the rest is let through."""

from collections.abc import Callable
from copy import deepcopy

import pytest

from tests.contract.compatibility import breaks
from tests.contract.written import document_of
from tests.unit.gateway.house import V2, Json

DOCUMENT = document_of("2")


def schema(document: Json, name: str) -> Json:
    return document["components"]["schemas"][name]


def prediction(document: Json) -> Json:
    return document["paths"][V2]["post"]


def parameter(document: Json, name: str) -> Json:
    (spec,) = (spec for spec in prediction(document)["parameters"] if spec["name"] == name)
    return spec


def codes(document: Json, status: str) -> Json:
    answer = prediction(document)["responses"][status]["content"]["application/json"]["schema"]
    return answer["allOf"][1]["properties"]["error"]["properties"]["code"]["enum"]


def breaks_after(change: Callable[[Json], object]) -> list[str]:
    new = deepcopy(DOCUMENT)
    change(new)
    assert new != DOCUMENT
    return breaks(DOCUMENT, new)


def required(document: Json) -> Json:
    return schema(document, "PredictV2Request")["required"]


def inputs(document: Json) -> Json:
    return schema(document, "PredictV2Request")["properties"]["inputs"]


BREAKS: dict[str, tuple[Callable[[Json], object], str]] = {
    "a route": (lambda document: document["paths"].pop(V2), f"POST {V2}: is gone"),
    "a status": (lambda document: prediction(document)["responses"].pop("429"), ": 429 is gone"),
    "a code": (
        lambda document: codes(document, "400").remove("malformed_body"),
        "'malformed_body' is gone",
    ),
    "a header": (
        lambda document: prediction(document)["responses"]["429"]["headers"].pop("Retry-After"),
        "429: the header Retry-After is gone",
    ),
    "a header's certainty": (
        lambda document: document["components"]["headers"]["Retry-After"].pop("required"),
        "Retry-After: is no longer sure",
    ),
    "a field of an answer": (
        lambda document: schema(document, "PredictV2Response")["properties"].pop("model"),
        "200.model: is gone",
    ),
    "a field deep in an answer": (
        lambda document: schema(document, "ScoredLabel")["properties"].pop("score"),
        "200.predictions[].top_k[].score: is gone",
    ),
    "a field of the error": (
        lambda document: schema(document, "ErrorBody")["properties"].pop("details"),
        "401.error.details: is gone",
    ),
    "a field's certainty": (
        lambda document: schema(document, "PredictV2Response")["required"].remove("request_id"),
        "200.request_id: is no longer sure",
    ),
    "a type of an answer": (
        lambda document: schema(document, "ScoredLabel")["properties"]["index"].update(
            type="string"
        ),
        "200.predictions[].top_k[].index: type is 'string', was 'integer'",
    ),
    "a bound of an answer": (
        lambda document: schema(document, "ScoredLabel")["properties"]["score"].pop("maximum"),
        "200.predictions[].top_k[].score: maximum",
    ),
    "a newly required field": (
        lambda document: required(document).append("model"),
        "model: is newly req",
    ),
    "a field of a request": (
        lambda document: schema(document, "PredictV2Request")["properties"].pop("top_k"),
        "body.top_k: is gone",
    ),
    "a type of a request": (
        lambda document: inputs(document)["items"].update(type="integer"),
        "body.inputs[]: type is 'integer', was 'string'",
    ),
    "null in a request": (
        lambda document: schema(document, "PredictV2Request")["properties"]["model"]["anyOf"].pop(),
        "body.model: is one of other types",
    ),
    "a lower limit": (
        lambda document: inputs(document).update(maxItems=2),
        "body.inputs: maxItems is 2",
    ),
    "a pattern": (
        lambda document: inputs(document)["items"].update(pattern="a"),
        "body.inputs[]: pattern",
    ),
    "the body's type": (
        lambda document: prediction(document)["requestBody"]["content"].clear(),
        "application/json is no longer taken",
    ),
    "the answer's type": (
        lambda document: prediction(document)["responses"]["200"]["content"].clear(),
        "200: application/json is no longer given",
    ),
    "a parameter": (
        lambda document: prediction(document)["parameters"].clear(),
        "the parameter X-Request-Timeout-Ms is gone",
    ),
    "a value of a parameter": (
        lambda document: parameter(document, "API-Version")["schema"]["enum"].remove("v2"),
        "API-Version: 'v2' is gone",
    ),
    "a newly required parameter": (
        lambda document: parameter(document, "X-Request-ID").update(required=True),
        "the parameter X-Request-ID is newly required",
    ),
    "other credentials": (
        lambda document: prediction(document).update(security=[{"key": []}]),
        "asks for other credentials",
    ),
    "credentials": (
        lambda document: document["paths"]["/livez"]["get"].update(security=[{"bearer": []}]),
        "GET /livez: asks for credentials",
    ),
}

COMPATIBLE: dict[str, Callable[[Json], object]] = {
    "a route": lambda document: document["paths"].update({"/more": document["paths"][V2]}),
    "a status": lambda document: prediction(document)["responses"].update(
        {"418": {"description": ""}}
    ),
    "a code": lambda document: codes(document, "429").append("tired"),
    "a header": lambda document: prediction(document)["responses"]["200"]["headers"].update(
        {"Server-Timing": {"schema": {"type": "string"}}}
    ),
    "a field of an answer": lambda document: schema(document, "ScoredLabel")["properties"].update(
        {"rank": {"type": "integer"}}
    ),
    "an optional field": lambda document: schema(document, "PredictV2Request")["properties"].update(
        {"language": {"type": "string"}}
    ),
    "a field no longer required": lambda document: required(document).remove("inputs"),
    "a higher limit": lambda document: inputs(document).update(maxItems=9999),
    "no limit": lambda document: inputs(document).pop("maxItems"),
    "an optional parameter": lambda document: prediction(document)["parameters"].append(
        {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string"}}
    ),
    "other words": lambda document: prediction(document).update(summary="Classify"),
    "another way to prove oneself": lambda document: prediction(document)["security"].append(
        {"key": []}
    ),
}


def test_the_same_document_breaks_nothing() -> None:
    assert breaks(DOCUMENT, deepcopy(DOCUMENT)) == []


@pytest.mark.parametrize("name", BREAKS)
def test_what_would_break_a_caller_is_caught(name: str) -> None:
    change, message = BREAKS[name]
    assert any(message in line for line in breaks_after(change)), breaks_after(change)


@pytest.mark.parametrize("name", COMPATIBLE)
def test_what_no_caller_would_miss_is_let_through(name: str) -> None:
    assert breaks_after(COMPATIBLE[name]) == []
