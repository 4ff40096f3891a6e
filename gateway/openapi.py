"""The one OpenAPI document, and the page that shows it."""

import hashlib
from base64 import b64encode
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.errors import INTERNAL, STATUS_AND_CODE
from gateway.schemas import (
    ErrorEnvelope,
    HealthResponse,
    PredictV1Request,
    PredictV1Response,
    PredictV2Request,
    PredictV2Response,
)
from kaiten.sections import Gateway

_REF = "#/components/schemas/{model}"
Json = dict[str, Any]

_SCRIPT = 'SwaggerUIBundle({url: "docs.json", dom_id: "#swagger-ui", validatorUrl: null})'
# BentoML's page calls a tag manager elsewhere, so this one stands in its place. The scripts are
# those that BentoML serves.
DOCS_PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Kaiten API</title>
<link rel="stylesheet" href="static_content/swagger-ui.css">
<link rel="icon" href="static_content/favicon-light-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="static_content/swagger-ui-bundle.js"></script>
<script>{_SCRIPT}</script>
</body>
</html>
"""
_SCRIPT_HASH = b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
# What the page may do in a browser: run these two scripts, and ask this server. Swagger UI writes
# styles into its elements, and has its pictures in itself.
DOCS_POLICY = "; ".join(
    [
        "default-src 'none'",
        f"script-src 'self' 'sha256-{_SCRIPT_HASH}'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)


def document(limits: Gateway) -> Json:
    """Return the OpenAPI 3.1 document of every route, BentoML's included."""
    schemas = _schemas()
    texts = schemas["PredictV2Request"]["properties"]["inputs"]
    texts["maxItems"] = limits.max_inputs
    texts["items"]["maxLength"] = limits.max_text_chars
    schemas["PredictV1Request"]["properties"]["text"]["maxLength"] = limits.max_text_chars
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Kaiten",
            "version": "2",
            "description": "Predictions by a fine-tuned model. Make a token with `kaiten token`.",
        },
        "paths": {
            "/api/v1/predict": _prediction(
                "Classify one text", PredictV1Request, PredictV1Response
            ),
            "/api/v2/predict": _prediction(
                "Classify several texts", PredictV2Request, PredictV2Response
            ),
            "/predict": _prediction(
                "The same, for bentoml.SyncHTTPClient", PredictV2Request, PredictV2Response
            ),
            "/health": _get("Whether the service can answer", _json(HealthResponse), ready=True),
            "/livez": _get("Whether the process runs", _plain()),
            "/healthz": _get("Whether the process runs", _plain()),
            "/readyz": _get("Whether every model can answer", _plain(), ready=True),
            **_metrics(limits),
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
            },
        },
    }


def _schemas() -> dict[str, Json]:
    models: tuple[type[BaseModel], ...] = (
        PredictV1Request,
        PredictV1Response,
        PredictV2Request,
        PredictV2Response,
        HealthResponse,
        ErrorEnvelope,
    )
    _, found = models_json_schema([(m, "validation") for m in models], ref_template=_REF)
    schemas: dict[str, Json] = found["$defs"]
    return schemas


def _prediction(summary: str, body: type[BaseModel], answer: type[BaseModel]) -> Json:
    return {
        "post": {
            "summary": summary,
            "tags": ["predictions"],
            "security": [{"bearer": []}],
            "requestBody": {"required": True, "content": _json(body)},
            "responses": {"200": {"description": "OK", "content": _json(answer)}} | _failures(),
        }
    }


def _get(summary: str, content: Json, *, ready: bool = False) -> Json:
    responses: Json = {"200": {"description": "OK", "content": content}}
    if ready:
        responses["503"] = _failure(["not_ready"])
    return {"get": {"summary": summary, "tags": ["operations"], "responses": responses}}


def _metrics(exposed: Gateway) -> Json:
    """Return the route of the metrics, as it is exposed."""
    if exposed.metrics == "closed":
        return {}
    route = _get("Prometheus metrics of all workers", _plain())
    if exposed.metrics == "token":
        route["get"]["security"] = [{"bearer": []}]
        failures = _failures()
        route["get"]["responses"] |= {status: failures[status] for status in ("401", "403")}
    return {"/metrics": route}


def _failures() -> Json:
    """Return each failure status of a prediction, with the codes that come with it."""
    pairs = [*STATUS_AND_CODE.values(), INTERNAL]
    return {
        str(status): _failure([code for other, code in pairs if other == status])
        for status in sorted({status for status, _ in pairs})
    }


def _failure(codes: list[str]) -> Json:
    return {"description": " or ".join(codes), "content": _json(ErrorEnvelope)}


def _json(model: type[BaseModel]) -> Json:
    return {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}}


def _plain() -> Json:
    return {"text/plain": {"schema": {"type": "string"}}}
