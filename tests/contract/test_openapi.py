import re
import sys
from datetime import date

import httpx
import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate

from gateway.api_versions import DOCUMENTS as PATHS
from gateway.api_versions import HEADER, NEWEST
from gateway.api_versions import NEGOTIATED_PATH as NEGOTIATED
from gateway.errors import INTERNAL, STATUS_AND_CODE
from gateway.response_headers import ResponseHeaders
from gateway.routes import RouteKind
from gateway.schemas import TEXT_PATTERN
from kaiten.errors import DatabaseUnavailable, DeadlineExceeded, InferenceFailed, QueueFull
from kaiten.settings.loader import Settings
from kaiten.settings.models import (
    ApiLifetimeSettings,
    ApiVersionSettings,
    Exposure,
    FeedbackSettings,
    GatewaySettings,
)
from tests.contract.written import document_of
from tests.unit.gateway.house import (
    BENTO,
    GOOD,
    LIMITS,
    QUALITIES,
    V1,
    V2,
    Classifier,
    Desk,
    House,
    Json,
    Raising,
    bearer,
    paths_of,
)


def document(version: str, limits: GatewaySettings = LIMITS, *, feedback: bool = True) -> Json:
    return document_of(version, gateway=limits, feedback=FeedbackSettings(enabled=feedback))


DOCUMENTS = {version: document(version) for version in PATHS}
TABLE = House().services.routes
# The documents and their page describe, and are not described.
PAGES = {spec.path for spec in TABLE.specs if spec.kind is RouteKind.PAGE}
PREDICT, FEEDBACK = {"1": V1, "2": V2}, "/api/v2/feedback"
# Each prediction route, as the document of each version that describes it does.
PREDICTING = [("1", V1), ("1", NEGOTIATED), ("2", V2), ("2", NEGOTIATED), ("2", BENTO)]
BODIES = {"1": GOOD[V1], "2": GOOD[V2]}


def problems(version: str, answer: Json, schema: Json) -> list[str]:
    validator = OAS31Validator({**schema, "components": DOCUMENTS[version]["components"]})
    return [error.message for error in validator.iter_errors(answer)]


def schema_of(version: str, path: str, method: str, status: int) -> Json:
    answers = DOCUMENTS[version]["paths"][path][method]["responses"]
    return answers[str(status)]["content"]["application/json"]["schema"]


def body_of(version: str, path: str) -> Json:
    body = DOCUMENTS[version]["paths"][path]["post"]["requestBody"]
    return body["content"]["application/json"]["schema"]


def check_headers(version: str, path: str, method: str, answer: httpx.Response) -> None:
    """Check an answer's headers against those that its status declares."""
    declared = DOCUMENTS[version]["paths"][path][method]["responses"][str(answer.status_code)]
    header_definitions = DOCUMENTS[version]["components"]["headers"]
    assert "X-Request-ID" in declared["headers"]
    for name, reference in declared["headers"].items():
        header = header_definitions[reference["$ref"].rpartition("/")[2]]
        assert name in answer.headers or not header.get("required")
        sent = answer.headers.get(name)
        assert sent is None or sent in header["schema"].get("enum", [sent])
    # Headers for browsers are on every answer and not part of the contract.
    settings = Settings.model_construct()
    usual = {name.decode() for name, _ in ResponseHeaders(TABLE, settings).of_route(None)}
    may = {"Content-Type", "Content-Length", *declared["headers"], *usual}
    assert {name.lower() for name in answer.headers} <= {name.lower() for name in may}


@pytest.mark.parametrize("openapi", DOCUMENTS.values(), ids=DOCUMENTS)
def test_a_document_is_openapi(openapi: Json) -> None:
    validate(openapi)


async def test_each_document_is_served_and_the_newest_at_docs_json() -> None:
    for version, path in PATHS.items():
        assert (await House().ask("GET", path)).json() == DOCUMENTS[version]
    assert (await House().ask("GET", "/docs.json")).json() == DOCUMENTS[NEWEST]


def test_every_route_is_documented_and_no_other() -> None:
    described = {path for openapi in DOCUMENTS.values() for path in openapi["paths"]}
    assert described == paths_of(TABLE) - PAGES


@pytest.mark.parametrize(("exposure", "needs_token"), [("open", False), ("token", True)])
def test_the_metrics_are_documented_as_they_are_exposed(
    exposure: Exposure, *, needs_token: bool
) -> None:
    limits = LIMITS.model_copy(update={"metrics": exposure})
    operation = document(NEWEST, limits)["paths"]["/metrics"]["get"]
    assert ("security" in operation) == needs_token
    assert ({"401", "403"} <= set(operation["responses"])) == needs_token


def test_closed_metrics_are_not_documented() -> None:
    limits = LIMITS.model_copy(update={"metrics": "closed"})
    paths = set(document(NEWEST, limits)["paths"])
    assert set(DOCUMENTS[NEWEST]["paths"]) - paths == {"/metrics"}


def test_a_document_has_the_routes_of_its_version_only() -> None:
    for version, openapi in DOCUMENTS.items():
        other_paths = {path for other, path in PREDICT.items() if other != version}
        assert PREDICT[version] in openapi["paths"]
        assert not other_paths & set(openapi["paths"])


@pytest.mark.parametrize("version", DOCUMENTS)
def test_a_route_documents_whether_it_asks_for_a_token(version: str) -> None:
    scopes = {spec.path: spec.scope for spec in (*TABLE.negotiating, *TABLE.specs)}
    for path, operations in DOCUMENTS[version]["paths"].items():
        (operation,) = operations.values()
        assert ("security" in operation) == (scopes[path] is not None)


@pytest.mark.parametrize(("version", "path"), PREDICTING)
def test_a_prediction_documents_every_failure_that_can_occur(version: str, path: str) -> None:
    answers = DOCUMENTS[version]["paths"][path]["post"]["responses"]
    documented = {
        (int(status), code)
        for status in answers.keys() - {"200"}
        for code in codes_of(schema_of(version, path, "post", int(status)))
    }
    # The paths exist, a caller that left receives no 499, and version 1 names no model.
    never = {(404, "not_found"), (499, "caller_gone")}
    # And it goes without the database.
    never |= {(503, "database_unavailable")}
    never |= {(404, "unknown_model")} if version == "1" else set()
    assert documented == {*STATUS_AND_CODE.values(), INTERNAL} - never


def codes_of(schema: Json) -> list[str]:
    codes: list[str] = schema["allOf"][1]["properties"]["error"]["properties"]["code"]["enum"]
    return codes


def test_the_limits_in_force_are_documented() -> None:
    schemas = DOCUMENTS["2"]["components"]["schemas"]
    inputs = schemas["PredictV2Request"]["properties"]["inputs"]
    assert inputs["maxItems"] == LIMITS.max_inputs
    assert inputs["items"]["maxLength"] == LIMITS.max_text_chars
    schemas = DOCUMENTS["1"]["components"]["schemas"]
    text = schemas["PredictV1Request"]["properties"]["text"]
    assert text["maxLength"] == LIMITS.max_text_chars


def test_a_document_is_made_anew_for_other_limits() -> None:
    other = document("2", LIMITS.model_copy(update={"max_inputs": 3, "max_text_chars": 4}))
    inputs = other["components"]["schemas"]["PredictV2Request"]["properties"]["inputs"]
    assert (inputs["maxItems"], inputs["items"]["maxLength"]) == (3, 4)
    assert document("2", LIMITS) == DOCUMENTS["2"]


async def test_a_deprecated_version_is_documented_as_one() -> None:
    house = House(
        versions=ApiVersionSettings(v1=ApiLifetimeSettings(deprecated_at=date(2026, 12, 1)))
    )
    for version, path in PATHS.items():
        openapi = (await house.ask("GET", path)).json()
        for operations in openapi["paths"].values():
            (operation,) = operations.values()
            expected = version == "1" and "predictions" in operation["tags"]
            assert operation.get("deprecated", False) == expected


def test_what_counts_as_blank_is_documented_as_it_is() -> None:
    pattern = re.compile(TEXT_PATTERN)
    for point in range(sys.maxunicode + 1):
        text = chr(point)
        blank = not text.strip() or text == "\0"
        assert (pattern.match(text) is None) == blank, hex(point)
    assert pattern.match(" \n a b ")
    assert not pattern.match("a\0")


@pytest.mark.parametrize(
    ("version", "path", "body"),
    [
        *((version, path, BODIES[version]) for version, path in PREDICTING),
        ("2", V2, {"inputs": ["a", "b"], "top_k": 4, "model": "intent"}),
        ("2", V2, {"inputs": ["a"], "top_k": 3.0}),
        ("2", BENTO, {"inputs": ["a"], "top_k": 3.0, "model": None}),
    ],
)
async def test_what_is_taken_and_answered_is_as_documented(
    version: str, path: str, body: Json
) -> None:
    assert problems(version, body, body_of(version, path)) == []
    answer = await House().post(path, body, {HEADER: version})
    assert answer.status_code == 200
    assert problems(version, answer.json(), schema_of(version, path, "post", 200)) == []
    check_headers(version, path, "post", answer)


@pytest.mark.parametrize(
    ("version", "body"),
    [
        ("1", {}),
        ("1", {"text": 1}),
        ("1", {"text": " "}),
        ("1", {"text": "a\0"}),
        ("1", {"text": "a", "top_k": 1}),
        ("1", {"text": "x" * (LIMITS.max_text_chars + 1)}),
        ("2", {"inputs": []}),
        ("2", {"inputs": [""]}),
        ("2", {"inputs": ["a"] * (LIMITS.max_inputs + 1)}),
        ("2", {"inputs": ["a"], "top_k": 0}),
        ("2", {"inputs": ["a"], "top_k": 1.5}),
        ("2", {"inputs": ["a"], "top_k": -0.0}),
        ("2", {"inputs": ["a"], "top_k": "1"}),
        ("2", {"inputs": ["a"], "top_k": True}),
        ("2", {"inputs": ["a"], "model": 1}),
        ("2", {"inputs": ["a"], "model": "\u2003"}),
        ("2", {"inputs": ["a"], "spy": 1}),
        ("2", {"inputs": ["x" * (LIMITS.max_text_chars + 1)]}),
    ],
)
async def test_what_the_document_forbids_is_refused(version: str, body: Json) -> None:
    assert problems(version, body, body_of(version, PREDICT[version]))
    assert (await House().post(PREDICT[version], body)).status_code == 422


LABELS = {"feedback": [{"request_id": "a.b-C_1", "item": 1, "label": "billing"}]}


async def test_feedback_is_as_documented() -> None:
    authorization = {"Authorization": bearer("feedback")}
    assert problems("2", LABELS, body_of("2", FEEDBACK)) == []
    answer = await House().post(FEEDBACK, LABELS, authorization)
    assert answer.json()["accepted"] == 1
    assert problems("2", answer.json(), schema_of("2", FEEDBACK, "post", 200)) == []
    check_headers("2", FEEDBACK, "post", answer)
    for status, house, headers in (
        (403, House(), {}),
        (503, House(desk=Desk(error=DatabaseUnavailable())), authorization),
    ):
        answer = await house.post(FEEDBACK, LABELS, headers)
        assert answer.status_code == status
        assert problems("2", answer.json(), schema_of("2", FEEDBACK, "post", status)) == []
        check_headers("2", FEEDBACK, "post", answer)


@pytest.mark.parametrize("version", DOCUMENTS)
async def test_quality_is_as_documented(version: str) -> None:
    for status, house, scope in (
        (200, House(desk=Desk(qualities=QUALITIES)), "ops"),
        (403, House(), "predict"),
        (503, House(desk=Desk(error=DatabaseUnavailable())), "ops"),
    ):
        headers = {"Authorization": bearer(scope)}
        answer = await house.ask("GET", "/ops/quality", headers=headers)
        assert answer.status_code == status
        schema = schema_of(version, "/ops/quality", "get", status)
        assert problems(version, answer.json(), schema) == []
        check_headers(version, "/ops/quality", "get", answer)


def test_what_is_not_kept_is_not_documented() -> None:
    for version, openapi in DOCUMENTS.items():
        paths = set(document(version, feedback=False)["paths"])
        gone = {"1": {"/ops/quality"}, "2": {"/ops/quality", FEEDBACK}}
        assert set(openapi["paths"]) - paths == gone[version]


@pytest.mark.parametrize("version", DOCUMENTS)
async def test_health_is_as_documented(version: str) -> None:
    answer = await House().ask("GET", "/health")
    assert problems(version, answer.json(), schema_of(version, "/health", "get", 200)) == []
    check_headers(version, "/health", "get", answer)
    answer = await House(Classifier(ready=False)).ask("GET", "/health")
    assert problems(version, answer.json(), schema_of(version, "/health", "get", 503)) == []
    check_headers(version, "/health", "get", answer)


@pytest.mark.parametrize("version", DOCUMENTS)
async def test_stats_are_as_documented(version: str) -> None:
    for scope, status in (("ops", 200), ("predict", 403)):
        answer = await House().ask("GET", "/ops/stats", headers={"Authorization": bearer(scope)})
        assert answer.status_code == status
        schema = schema_of(version, "/ops/stats", "get", status)
        assert problems(version, answer.json(), schema) == []
        check_headers(version, "/ops/stats", "get", answer)


@pytest.mark.parametrize(
    ("runner", "headers", "body", "status"),
    [
        (Classifier(), {}, b"{", 400),
        (Classifier(), {HEADER: "0"}, None, 400),
        (Classifier(), {"Authorization": ""}, {}, 401),
        (Classifier(), {"Authorization": bearer("ops")}, None, 403),
        (Classifier(), {}, b" " * (LIMITS.max_body_bytes + 1), 413),
        (Classifier(), {"Content-Type": "text/plain"}, {}, 415),
        (Classifier(), {}, {}, 422),
        (Raising(QueueFull(1)), {}, None, 429),
        (Raising(InferenceFailed()), {}, None, 500),
        (Classifier(ready=False), {}, None, 503),
        (Raising(DeadlineExceeded(1)), {}, None, 504),
    ],
)
@pytest.mark.parametrize(("version", "path"), PREDICTING)
async def test_a_failure_is_as_documented(
    version: str,
    path: str,
    runner: Classifier,
    headers: dict[str, str],
    body: Json,
    status: int,
) -> None:
    sent = BODIES[version] if body is None else body
    answer = await House(runner).post(path, sent, {HEADER: version, **headers})
    assert answer.status_code == status
    assert problems(version, answer.json(), schema_of(version, path, "post", status)) == []
    check_headers(version, path, "post", answer)


async def test_the_page_asks_no_other_host_and_offers_every_version() -> None:
    page = (await House().ask("GET", "/docs")).text
    assert all(f'url: "{path.removeprefix("/")}"' in page for path in PATHS.values())
    assert "//" not in page
