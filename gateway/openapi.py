"""The OpenAPI document of each version of the API."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.admission import deadlines
from gateway.api_versions import DEFAULT, FEEDBACK, HEADER, KNOWN, NEGOTIATED, PREDICT
from gateway.error_reference import Row, rows
from gateway.middleware import request_context
from gateway.schemas import (
    DriftResponse,
    ErrorEnvelope,
    FeedbackRequest,
    FeedbackResponse,
    HealthResponse,
    PredictV1Request,
    PredictV1Response,
    PredictV2Request,
    PredictV2Response,
    QualityResponse,
    StatsResponse,
)
from kaiten.settings.models import GatewaySettings

_REF = "#/components/schemas/{model}"
Json = dict[str, Any]

_MODELS: dict[str, tuple[type[BaseModel], type[BaseModel]]] = {
    "1": (PredictV1Request, PredictV1Response),
    "2": (PredictV2Request, PredictV2Response),
}
_OF_ALL_VERSIONS: tuple[type[BaseModel], ...] = (
    HealthResponse,
    StatsResponse,
    DriftResponse,
    ErrorEnvelope,
)
_FEEDBACK: tuple[type[BaseModel], type[BaseModel]] = (FeedbackRequest, FeedbackResponse)
_SUMMARIES = {"1": "Classify one text", "2": "Classify several texts"}
# Nobody meets them on a route that is there: it is another path, or the caller has left.
_ELSEWHERE = {"not_found", "caller_gone"}
# A prediction goes without the database; and version 1 names no model.
_NOT_OF_VERSION = {
    "1": {"unknown_model", "database_unavailable"},
    "2": {"database_unavailable"},
}
_NOT_OF_FEEDBACK = {"unknown_model", "queue_full", "inference_failed"}
_OF_EVERY_ROUTE = {
    *("malformed_request", "method_not_allowed", "unsupported_content_type", "headers_too_large"),
    *("internal_error", "deadline_exceeded"),
}
# What a route that asks who calls may say besides.
_OF_CALLERS = {
    *("unauthenticated", "forbidden", "loopback_only", "rate_limited", "too_many_concurrent"),
    *("not_ready", "issuer_unavailable"),
}
_SECURITY: list[dict[str, list[str]]] = [{"bearer": []}, {"apiKey": []}]
_OF_LIMITS = ("RateLimit-Policy", "RateLimit")
_OF_LIFETIME = ("Deprecation", "Sunset", "Link")
_ANY_VERSION = "Any-API-Version"
_HEADERS: dict[str, Json] = {
    request_context.HEADER: {
        "description": "The request's id: the caller's, if it is plain, else one that was made.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    },
    "Deprecation": {
        "description": "Since when this version is deprecated, if it is (RFC 9745).",
        "schema": {"type": "string", "pattern": "^@-?[0-9]+$"},
    },
    "Sunset": {
        "description": "From when this version may be missing, if that is known (RFC 8594).",
        "schema": {"type": "string"},
    },
    "Link": {
        "description": "Where a note on the deprecation or the sunset is, if there is one.",
        "schema": {"type": "string"},
    },
    "RateLimit-Policy": {
        "description": "What the caller may ask for, by limit: q in w seconds.",
        "schema": {"type": "string"},
    },
    "RateLimit": {
        "description": "What is left of it: r, for t more seconds.",
        "schema": {"type": "string"},
    },
    "Accept-Encoding": {
        "description": "The encodings of a body that are taken, if it had another.",
        "schema": {"type": "string"},
    },
    "Allow": {
        "description": "The methods of this path.",
        "required": True,
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "Seconds to wait before the next try.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    },
    "WWW-Authenticate": {
        "description": "What is asked for, and what was wrong with the token (RFC 6750).",
        "schema": {"type": "string"},
    },
}


def document(
    version: str, limits: GatewaySettings, *, deprecated: bool = False, quality: bool = True
) -> Json:
    """Return the OpenAPI 3.1 document of a version: its routes, and those of every version.

    ``quality`` is whether predictions and labels are kept.
    """
    paths = {
        PREDICT[version]: _prediction(version),
        NEGOTIATED: _prediction(version, negotiated=True),
    }
    if version == "2":
        paths["/predict"] = _prediction(version, "The same, for bentoml.SyncHTTPClient")
        paths |= {FEEDBACK: _feedback()} if quality else {}
    for path in paths.values():
        # Only where it is so: a document says nothing of what is as usual.
        path["post"] |= {"deprecated": True} if deprecated else {}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Kaiten",
            "version": version,
            "description": "Predictions by a fine-tuned model. "
            "Make a token with `kaiten token create`.",
        },
        "paths": paths | _operations(limits, quality=quality),
        "components": {
            "schemas": _schemas(version, limits, quality=quality),
            "headers": _HEADERS | _version_headers(version),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _schemas(version: str, limits: GatewaySettings, *, quality: bool) -> dict[str, Json]:
    """Return the schemas that the document points to, with the limits in force."""
    models = (*_MODELS[version], *_OF_ALL_VERSIONS)
    if quality:
        models += (QualityResponse, *(_FEEDBACK if version == "2" else ()))
    _, found = models_json_schema([(m, "validation") for m in models], ref_template=_REF)
    schemas: dict[str, Json] = deepcopy(found["$defs"])
    if version == "1":
        schemas["PredictV1Request"]["properties"]["text"]["maxLength"] = limits.max_text_chars
    else:
        texts = schemas["PredictV2Request"]["properties"]["inputs"]
        texts["maxItems"] = limits.max_inputs
        texts["items"]["maxLength"] = limits.max_text_chars
    if "FeedbackRequest" in schemas:
        labels = schemas["FeedbackRequest"]["properties"]["feedback"]
        labels["maxItems"] = limits.max_inputs
    return schemas


def _operations(limits: GatewaySettings, *, quality: bool) -> Json:
    """Return the routes that no version changes."""
    summary = "How good each version's answers are, by labels and without"
    more = {"/ops/quality": _asking(summary, _json(QualityResponse), {"database_unavailable"})}
    return {
        "/health": _get("Whether the service can answer", _json(HealthResponse), ready=True),
        "/livez": _get("Whether the process runs", _plain()),
        "/healthz": _get("Whether the process runs", _plain()),
        "/readyz": _get("Whether every model can answer", _plain(), ready=True),
        **_metrics(limits),
        "/ops/stats": _asking(
            "How many answers each route gave, and how fast", _json(StatsResponse)
        ),
        "/ops/drift": _asking(
            "Whether the answers of each served version have drifted", _json(DriftResponse)
        ),
        **(more if quality else {}),
    }


def _prediction(version: str, summary: str = "", *, negotiated: bool = False) -> Json:
    body, answer = _MODELS[version]
    left_out = _ELSEWHERE | _NOT_OF_VERSION[version]
    codes = {row.code for row in rows()} - left_out
    names = (request_context.HEADER, HEADER, *_OF_LIFETIME, *_OF_LIMITS)
    told = {name: name for name in names}
    # A request whose header is wrong is refused by another version, or by none.
    refused = {**told, HEADER: _ANY_VERSION} if negotiated else told
    return {
        "post": {
            "summary": summary or _SUMMARIES[version],
            "tags": ["predictions"],
            "security": _SECURITY,
            "parameters": _parameters(version, required=negotiated and version != DEFAULT),
            "requestBody": {"required": True, "content": _json(body)},
            "responses": _success(_json(answer), told) | _failures(codes, refused),
        }
    }


def _feedback() -> Json:
    """Return the route that takes labels."""
    body, answer = _FEEDBACK
    codes = {row.code for row in rows()} - _ELSEWHERE - _NOT_OF_FEEDBACK
    names = (request_context.HEADER, HEADER, *_OF_LIFETIME, *_OF_LIMITS)
    told = {name: name for name in names}
    return {
        "post": {
            "summary": "Say what texts should have been answered with",
            "tags": ["predictions"],
            "security": _SECURITY,
            "parameters": _parameters("2", required=False),
            "requestBody": {"required": True, "content": _json(body)},
            "responses": _success(_json(answer), told) | _failures(codes, told),
        }
    }


def _metrics(exposed: GatewaySettings) -> Json:
    """Return the route of the metrics, as it is exposed."""
    if exposed.metrics == "closed":
        return {}
    summary = "Prometheus metrics of all workers"
    if exposed.metrics == "open":
        return {"/metrics": _get(summary, _plain())}
    return {"/metrics": _asking(summary, _plain())}


def _get(summary: str, content: Json, *, ready: bool = False) -> Json:
    codes = {*_OF_EVERY_ROUTE, *(["not_ready"] if ready else [])}
    return _reading(summary, content, codes, (request_context.HEADER,))


def _asking(summary: str, content: Json, more: Collection[str] = frozenset()) -> Json:
    """Return a route that asks who calls."""
    codes = {*_OF_EVERY_ROUTE, *_OF_CALLERS, *more}
    route = _reading(summary, content, codes, (request_context.HEADER, *_OF_LIMITS))
    route["get"]["security"] = _SECURITY
    return route


def _reading(summary: str, content: Json, codes: Collection[str], headers: Iterable[str]) -> Json:
    told = {name: name for name in headers}
    return {
        "get": {
            "summary": summary,
            "tags": ["operations"],
            "responses": _success(content, told) | _failures(codes, told),
        }
    }


def _parameters(version: str, *, required: bool) -> list[Json]:
    """Return the headers that a prediction heeds."""
    written = [each for each, of in KNOWN.items() if of == version]
    return [
        {
            "name": HEADER,
            "in": "header",
            "required": required,
            "description": f"The version of the API; without it, {NEGOTIATED} is of {DEFAULT}.",
            "schema": {"type": "string", "enum": written},
        },
        {
            "name": request_context.HEADER,
            "in": "header",
            "description": "An id for the request; one that is not plain is replaced.",
            "schema": {"type": "string"},
        },
        {
            "name": deadlines.HEADER,
            "in": "header",
            "description": "The longest to wait for an answer, if less than the service's limit.",
            "schema": {"type": "integer", "minimum": 1, "maximum": 10**deadlines.MAX_DIGITS - 1},
        },
    ]


def _success(content: Json, headers: Mapping[str, str]) -> Json:
    return {"200": {"description": "OK", "headers": _refs(headers), "content": content}}


def _failures(codes: Collection[str], headers: Mapping[str, str]) -> Json:
    """Return each status of a failure, with the codes that come with it."""
    found = [row for row in rows() if row.code in codes]
    return {
        str(status): _failure([row for row in found if row.status == status], headers)
        for status in sorted({row.status for row in found})
    }


def _failure(found: Sequence[Row], headers: Mapping[str, str]) -> Json:
    own: dict[str, str] = {header: header for row in found for header in row.remedy.headers}
    codes = {"properties": {"code": {"enum": [row.code for row in found]}}}
    schema = {"allOf": [_ref(ErrorEnvelope), {"properties": {"error": codes}}]}
    return {
        "description": "\n".join(f"`{row.code}`: {row.meaning}" for row in found),
        "headers": _refs({**headers, **own}),
        "content": {"application/json": {"schema": schema}},
    }


def _version_headers(version: str) -> dict[str, Json]:
    known = [*PREDICT]
    return {
        HEADER: {
            "description": "The version that answers.",
            "required": True,
            "schema": {"type": "string", "enum": [version]},
        },
        _ANY_VERSION: {
            "description": "The version that refuses, if the request named one that is known.",
            "schema": {"type": "string", "enum": known},
        },
    }


def _refs(headers: Mapping[str, str]) -> Json:
    """Return headers by name; each is given by the key of its component."""
    return {name: {"$ref": f"#/components/headers/{key}"} for name, key in headers.items()}


def _json(model: type[BaseModel]) -> Json:
    return {"application/json": {"schema": _ref(model)}}


def _ref(model: type[BaseModel]) -> Json:
    return {"$ref": _REF.format(model=model.__name__)}


def _plain() -> Json:
    return {"text/plain": {"schema": {"type": "string"}}}
