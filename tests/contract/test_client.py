"""The client against the served OpenAPI document, and against the gateway itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from openapi_schema_validator import OAS31Validator
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

import kaiten_client
from gateway.api_versions import NEWEST
from kaiten.errors import DatabaseUnavailable, InferenceFailed, QueueFull
from kaiten_client import AsyncClient, FeedbackResponse, Label, PredictResponse
from kaiten_client.calls import FEEDBACK, PREDICT, READY, feedback_call, prediction_call
from kaiten_client.replies import ErrorEnvelope, Reply, error_from_reply
from tests.contract.written import document_of
from tests.unit.gateway.house import (
    LIMITS,
    TAG,
    Classifier,
    Desk,
    House,
    Json,
    Raising,
    Stuck,
    bearer,
)

DOCUMENT = document_of(NEWEST, gateway=LIMITS)
SCHEMAS = DOCUMENT["components"]["schemas"]
FEEDBACK_OPERATION = DOCUMENT["paths"][FEEDBACK]["post"]
PREDICT_OPERATION = DOCUMENT["paths"][PREDICT]["post"]
# What a caller may do about each status is another; a status that is new here needs a decision.
CLASSES: dict[int, type[kaiten_client.KaitenError]] = {
    400: kaiten_client.InvalidRequest,
    401: kaiten_client.Unauthenticated,
    403: kaiten_client.Forbidden,
    404: kaiten_client.NotFound,
    405: kaiten_client.InvalidRequest,
    408: kaiten_client.TimedOut,
    413: kaiten_client.InvalidRequest,
    415: kaiten_client.InvalidRequest,
    422: kaiten_client.InvalidRequest,
    429: kaiten_client.RateLimited,
    431: kaiten_client.InvalidRequest,
    # No caller is left to read it.
    499: kaiten_client.InvalidRequest,
    500: kaiten_client.ServerError,
    503: kaiten_client.Unavailable,
    504: kaiten_client.TimedOut,
}


def codes_of(answer: Json) -> list[str]:
    envelope = schema(answer["content"])["allOf"][1]["properties"]["error"]
    codes: list[str] = envelope["properties"]["code"]["enum"]
    return codes


def schema(content: Json) -> Json:
    return content["application/json"]["schema"]


def resolve(part: Json, definitions: Json) -> Json:
    return definitions[part["$ref"].rpartition("/")[2]] if "$ref" in part else part


def gaps(expected: Json, definitions: Json, served: Json, path: str = "") -> list[str]:
    """Return what a client's model reads that the served schema does not promise."""
    expected, served = resolve(expected, definitions), resolve(served, SCHEMAS)
    if expected["type"] != served.get("type"):
        return [f"{path}: is {served.get('type')}, read as {expected['type']}"]
    if expected["type"] == "array":
        return gaps(expected["items"], definitions, served["items"], f"{path}[]")
    lines = []
    for name, part in expected.get("properties", {}).items():
        place = f"{path}.{name}"
        # A field with a default may be missing.
        needed = name in expected.get("required", [])
        if name not in served["properties"] or (needed and name not in served.get("required", [])):
            lines.append(f"{place}: is not promised")
        else:
            lines += gaps(part, definitions, served["properties"][name], place)
    return lines


def gaps_of(model: type[BaseModel], served: Json) -> list[str]:
    expected = model.model_json_schema()
    return gaps(expected, expected.get("$defs", {}), served)


def test_the_routes_are_served() -> None:
    assert "post" in DOCUMENT["paths"][PREDICT]
    assert "get" in DOCUMENT["paths"][READY]


@pytest.mark.parametrize("model", [None, "intent"])
def test_what_is_sent_is_taken(model: str | None) -> None:
    body = prediction_call(["a", "b"], 3, model).content
    validator = OAS31Validator(
        {
            **schema(PREDICT_OPERATION["requestBody"]["content"]),
            "components": DOCUMENT["components"],
        }
    )
    assert validator.is_valid(httpx.Response(200, content=body).json())


def test_labels_that_are_sent_are_taken() -> None:
    body = feedback_call([Label("a", 0, "delivery"), ("b", 2, "other")]).content
    content = schema(FEEDBACK_OPERATION["requestBody"]["content"])
    validator = OAS31Validator({**content, "components": DOCUMENT["components"]})
    assert validator.is_valid(httpx.Response(200, content=body).json())
    assert (
        gaps_of(FeedbackResponse, schema(FEEDBACK_OPERATION["responses"]["200"]["content"])) == []
    )


def test_what_is_read_is_promised() -> None:
    assert gaps_of(PredictResponse, schema(PREDICT_OPERATION["responses"]["200"]["content"])) == []


@pytest.mark.parametrize(
    "status", [status for status in PREDICT_OPERATION["responses"] if status != "200"]
)
def test_what_is_read_of_a_failure_is_promised(status: str) -> None:
    envelope, _ = schema(PREDICT_OPERATION["responses"][status]["content"])["allOf"]
    assert gaps_of(ErrorEnvelope, envelope) == []


def test_a_gap_is_found() -> None:
    class Model(BaseModel):
        model: int
        spy: str
        predictions: list[str]

    served = schema(PREDICT_OPERATION["responses"]["200"]["content"])
    assert gaps_of(Model, served) == [
        ".model: is string, read as integer",
        ".spy: is not promised",
        ".predictions[]: is object, read as string",
    ]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (int(status), code)
        for status, answer in PREDICT_OPERATION["responses"].items()
        if status != "200"
        for code in codes_of(answer)
    ]
    + [(503, "database_unavailable")],
)
def test_every_documented_failure_has_a_class(status: int, code: str) -> None:
    body = {"code": code, "message": "", "details": [], "request_id": "id"}
    answer = httpx.Response(status, json={"error": body})
    error = error_from_reply(Reply(status, answer.headers, answer.content, 0), "own")
    assert isinstance(error, CLASSES[status])
    assert isinstance(error, kaiten_client.UnknownModel) == (code == "unknown_model")
    assert (error.status, error.code) == (status, code)


@asynccontextmanager
async def client_of(app: ASGIApp, token: str = "") -> AsyncIterator[AsyncClient]:
    token = token or bearer("predict").partition(" ")[2]
    transport = httpx.ASGITransport(app)
    async with AsyncClient(
        "http://127.0.0.1", token=token, retries=0, transport=transport
    ) as client:
        yield client


async def test_the_gateway_answers_the_client() -> None:
    async with client_of(House().app) as client:
        answer = await client.predict(["my delivery", "other other"], top_k=2, model="intent")
    assert answer.model == TAG
    assert [prediction.label for prediction in answer.predictions] == ["delivery", "other"]
    assert [len(prediction.top_k) for prediction in answer.predictions] == [2, 2]


@pytest.mark.parametrize(
    ("runner", "token", "arguments", "kind", "field"),
    [
        (Classifier(), "no.good.token", {}, kaiten_client.Unauthenticated, None),
        (Classifier(), bearer("ops")[7:], {}, kaiten_client.Forbidden, None),
        (Classifier(), "", {"model": "other"}, kaiten_client.UnknownModel, "model"),
        (Classifier(), "", {"inputs": ["a", ""]}, kaiten_client.InvalidRequest, "inputs.1"),
        (Classifier(), "", {"inputs": ["\ud800"]}, kaiten_client.InvalidRequest, "inputs.0"),
        (Classifier(), "", {"inputs": []}, kaiten_client.InvalidRequest, "inputs"),
        (Classifier(), "", {"top_k": 0}, kaiten_client.InvalidRequest, "top_k"),
        (Raising(QueueFull(3)), "", {}, kaiten_client.RateLimited, None),
        (Raising(InferenceFailed()), "", {}, kaiten_client.ServerError, None),
        (Classifier(ready=False), "", {}, kaiten_client.Unavailable, None),
        # By the header: the gateway's own limit is half a minute.
        (Stuck(), "", {"timeout_s": 0.02}, kaiten_client.TimedOut, None),
    ],
)
async def test_the_gateways_failures_are_the_clients_errors(
    runner: Classifier,
    token: str,
    arguments: Json,
    kind: type[kaiten_client.KaitenError],
    field: str | None,
) -> None:
    arguments = {"inputs": ["a"]} | arguments
    async with client_of(House(runner).app, token) as client:
        with pytest.raises(kind) as raised:
            await client.predict(**arguments)
    error = raised.value
    assert error.code
    assert len(error.request_id) == 32
    assert [detail.field for detail in error.details] == ([field] if field else [])
    waits = {
        kaiten_client.RateLimited: 3,
        kaiten_client.TimedOut: 7,
        kaiten_client.Unavailable: 5,
    }
    assert error.retry_after_s == waits.get(kind)


async def test_the_gateway_keeps_the_clients_labels() -> None:
    house = House()
    async with client_of(house.app, bearer("feedback")[7:]) as client:
        answer = await client.feedback([("a", 0, "delivery"), Label("b", 2, "other")])
    assert (answer.accepted, answer.joined) == (2, 1)
    assert house.desk.submissions == [([("a", 0, "delivery"), ("b", 2, "other")], None)]


async def test_a_database_that_is_away_is_unavailable() -> None:
    house = House(desk=Desk(error=DatabaseUnavailable(2)))
    async with client_of(house.app, bearer("feedback")[7:]) as client:
        with pytest.raises(kaiten_client.Unavailable) as raised:
            await client.feedback([("a", 0, "delivery")])
    assert (raised.value.code, raised.value.retry_after_s) == ("database_unavailable", 2)


async def test_the_request_is_known_by_the_clients_id() -> None:
    house, sent = House(), list[str]()

    async def record_request_id(scope: Scope, receive: Receive, send: Send) -> None:
        sent.append(Headers(scope=scope)["X-Request-ID"])
        await house.app(scope, receive, send)

    async with client_of(record_request_id) as client:
        answer = await client.predict(["a"])
    assert sent == [answer.request_id]
