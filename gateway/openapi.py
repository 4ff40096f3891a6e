"""The OpenAPI document of each version of the API, derived from the routes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.admission import deadlines
from gateway.api_versions import DEFAULT, HEADER, NEGOTIATED_PATH, VERSIONS, names_of
from gateway.error_reference import Row, rows
from gateway.errors import INTERNAL, STATUS_AND_CODE
from gateway.routes import PARAMETER_PATTERN, RouteKind, RouteSpec, RouteTable
from gateway.schemas import REQUEST_ID_PATTERN, ErrorEnvelope
from kaiten import errors
from kaiten.settings.loader import Settings
from kaiten.settings.models import GatewaySettings

_REF = "#/components/schemas/{model}"
Json = dict[str, Any]

REQUEST_ID_HEADER = "X-Request-ID"
# What the middleware raises on every route; on routes that require a scope; on those that take a
# body; and on those that belong to a version.
_OF_EVERY_ROUTE = frozenset(
    {
        errors.MalformedRequest,
        errors.MethodNotAllowed,
        errors.UnsupportedContentType,
        errors.HeadersTooLarge,
        errors.DeadlineExceeded,
    }
)
_OF_SCOPES = frozenset(
    {
        errors.Unauthenticated,
        errors.Forbidden,
        errors.LoopbackOnly,
        errors.RateLimited,
        errors.TooManyConcurrent,
        errors.NotReady,
        errors.IssuerUnavailable,
    }
)
_OF_BODIES = frozenset(
    {
        errors.MalformedBody,
        errors.BodyTimeout,
        errors.BodyTooLarge,
        errors.UnsupportedContentEncoding,
        errors.InvalidInput,
        errors.BodyMemoryFull,
        errors.Overloaded,
        errors.OutOfDescriptors,
    }
)
_OF_VERSIONS = frozenset({errors.UnknownApiVersion, errors.ApiVersionMismatch})
_SECURITY: list[dict[str, list[str]]] = [{"bearer": []}, {"apiKey": []}]
_LIMIT_HEADERS = ("RateLimit-Policy", "RateLimit")
_VERSION_HEADERS = (HEADER, "Deprecation", "Sunset", "Link")
_ANY_VERSION = "Any-API-Version"
_HEADERS: dict[str, Json] = {
    REQUEST_ID_HEADER: {
        "description": "The request's id: the caller's, if it is plain, else one that was made.",
        "required": True,
        "schema": {"type": "string", "pattern": REQUEST_ID_PATTERN},
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
        "description": "The limits of the caller: q in w seconds.",
        "schema": {"type": "string"},
    },
    "RateLimit": {
        "description": "The rest of it: r, for t more seconds.",
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
        "description": "The required credential, and the fault of the token (RFC 6750).",
        "schema": {"type": "string"},
    },
}


def document(version: str, table: RouteTable, settings: Settings) -> Json:
    """Return the OpenAPI 3.1 document of a version: its routes, and those of every version."""
    specs = [spec for spec in table.specs if spec.summary and spec.api_version in {version, None}]
    deprecated = settings.api_versions.lifetime(version).deprecated_at is not None
    paths: dict[str, Json] = {}
    for spec in specs:
        paths.setdefault(spec.path, {}).update(_operation(spec, deprecated=deprecated))
        if spec.negotiated_path is not None:
            negotiated = _operation(spec, deprecated=deprecated, negotiated=True)
            paths.setdefault(spec.negotiated_path, {}).update(negotiated)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Kaiten",
            "version": version,
            "description": "Predictions by a fine-tuned model. "
            "Make a token with `kaiten token create`.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(specs, settings.gateway),
            "headers": _HEADERS | _version_headers(version),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _schemas(specs: Iterable[RouteSpec], limits: GatewaySettings) -> dict[str, Json]:
    """Return the schemas of all requests and answers, with the limits in force."""
    models: dict[type[BaseModel], None] = {ErrorEnvelope: None}
    for spec in specs:
        models |= {model: None for model in (spec.request, spec.response) if model is not None}
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    definitions: dict[str, Json] = _with_limits(schemas["$defs"], limits)
    return definitions


def _with_limits(schema: Any, limits: GatewaySettings) -> Any:  # noqa: ANN401  any JSON value
    """Return a schema with each bound that is the name of a setting replaced by its value."""
    if isinstance(schema, list):
        return [_with_limits(item, limits) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: getattr(limits, value)
        if key in {"maxItems", "maxLength"} and isinstance(value, str)
        else _with_limits(value, limits)
        for key, value in schema.items()
    }


def _operation(spec: RouteSpec, *, deprecated: bool, negotiated: bool = False) -> Json:
    is_model_route = spec.kind is RouteKind.MODEL
    headers = {name: name for name in _headers_of(spec)}
    # A request whose version is rejected is answered by another version, or by none.
    failed = headers | ({HEADER: _ANY_VERSION} if negotiated else {})
    operation: Json = {
        "summary": spec.summary,
        "tags": ["predictions" if is_model_route else "operations"],
    }
    if spec.scope is not None:
        operation["security"] = _SECURITY
    if parameters := [*_path_parameters(spec), *_header_parameters(spec, negotiated=negotiated)]:
        operation["parameters"] = parameters
    if spec.request is not None:
        operation["requestBody"] = {"required": True, "content": _json(spec.request)}
    content = _json(spec.response) if spec.response else _PLAIN_TEXT
    success = {"description": "OK", "headers": _refs(headers), "content": content}
    operation["responses"] = {"200": success} | _failures(_errors_of(spec), failed)
    if deprecated and is_model_route:
        operation["deprecated"] = True
    return {spec.method.lower(): operation}


def _headers_of(spec: RouteSpec) -> list[str]:
    """Return the headers of a route's answers."""
    versioned = _VERSION_HEADERS if spec.api_version is not None else ()
    limited = _LIMIT_HEADERS if spec.scope is not None else ()
    return [REQUEST_ID_HEADER, *versioned, *limited]


def _errors_of(spec: RouteSpec) -> set[str]:
    """Return the codes of a route's failures: the handler's, and those of the middleware."""
    types = _OF_EVERY_ROUTE | spec.errors
    if spec.scope is not None:
        types |= _OF_SCOPES
    if spec.request is not None:
        types |= _OF_BODIES
    if spec.kind is RouteKind.MODEL:
        # X-Request-Timeout-Ms may be no number.
        types |= {errors.InvalidInput}
    if spec.api_version is not None:
        types |= _OF_VERSIONS
    return {INTERNAL[1], *(STATUS_AND_CODE[error][1] for error in types)}


def _path_parameters(spec: RouteSpec) -> list[Json]:
    schema = {"type": "string", "pattern": f"^{PARAMETER_PATTERN}$"}
    return [
        {"name": name, "in": "path", "required": True, "schema": schema} for name in spec.parameters
    ]


def _header_parameters(spec: RouteSpec, *, negotiated: bool) -> list[Json]:
    """Return the headers that a model's route reads."""
    if spec.kind is not RouteKind.MODEL:
        return []
    return [
        *_version_parameter(spec.api_version, negotiated=negotiated),
        {
            "name": REQUEST_ID_HEADER,
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


def _version_parameter(version: str | None, *, negotiated: bool) -> list[Json]:
    if version is None:
        return []
    text = f"The version of the API; without it, {NEGOTIATED_PATH} is of {DEFAULT}."
    return [
        {
            "name": HEADER,
            "in": "header",
            "required": negotiated and version != DEFAULT,
            "description": text,
            "schema": {"type": "string", "enum": names_of(version)},
        }
    ]


def _failures(codes: set[str], headers: Mapping[str, str]) -> Json:
    """Return each status of a failure, with the codes that come with it."""
    failures = [row for row in rows() if row.code in codes]
    return {
        str(status): _failure([row for row in failures if row.status == status], headers)
        for status in sorted({row.status for row in failures})
    }


def _failure(failures: Sequence[Row], headers: Mapping[str, str]) -> Json:
    remedies: dict[str, str] = {name: name for row in failures for name in row.remedy.headers}
    codes = {"properties": {"code": {"enum": [row.code for row in failures]}}}
    schema = {"allOf": [_ref(ErrorEnvelope), {"properties": {"error": codes}}]}
    return {
        "description": "\n".join(f"`{row.code}`: {row.meaning}" for row in failures),
        "headers": _refs({**headers, **remedies}),
        "content": {"application/json": {"schema": schema}},
    }


def _version_headers(version: str) -> dict[str, Json]:
    return {
        HEADER: {
            "description": "The version that answers.",
            "required": True,
            "schema": {"type": "string", "enum": [version]},
        },
        _ANY_VERSION: {
            "description": "The version that refuses, if the request named one that is known.",
            "schema": {"type": "string", "enum": [*VERSIONS]},
        },
    }


def _refs(headers: Mapping[str, str]) -> Json:
    """Return headers by name; each is given by the key of its component."""
    return {name: {"$ref": f"#/components/headers/{key}"} for name, key in headers.items()}


def _json(model: type[BaseModel]) -> Json:
    return {"application/json": {"schema": _ref(model)}}


def _ref(model: type[BaseModel]) -> Json:
    return {"$ref": _REF.format(model=model.__name__)}


_PLAIN_TEXT: Json = {"text/plain": {"schema": {"type": "string"}}}
