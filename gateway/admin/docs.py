"""The OpenAPI documents, and the page that shows them."""

import hashlib
import json
from base64 import b64encode
from functools import lru_cache

from starlette.responses import HTMLResponse, Response

from gateway.api_versions import DOCUMENTS, NEWEST
from gateway.exchange import Exchange
from gateway.openapi import document
from gateway.routes import RouteKind, RouteSpec
from gateway.services import Services
from kaiten.settings.loader import Settings
from kaiten.settings.models import Exposure

# Newest first: it is what the page opens with.
_URLS = ", ".join(
    f'{{url: "{path.removeprefix("/")}", name: "Version {version}"}}'
    for version, path in reversed([*DOCUMENTS.items()])
)
_SCRIPT = f"""
SwaggerUIBundle({{
  urls: [{_URLS}],
  dom_id: "#swagger-ui",
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIStandalonePreset],
  layout: "StandaloneLayout",
}})
"""
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
<script src="static_content/swagger-ui-standalone-preset.js"></script>
<script>{_SCRIPT}</script>
</body>
</html>
"""
_SCRIPT_HASH = b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
# What the page may do in a browser: run these scripts, and ask this server. Swagger UI writes
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


async def page(_: Exchange, __: Services) -> Response:
    """Return the page; what it loads comes from this server."""
    return HTMLResponse(DOCS_PAGE)


async def openapi(exchange: Exchange, services: Services) -> Response:
    """Return the OpenAPI document of the path's version, or of the newest."""
    version = (exchange.spec and exchange.spec.api_version) or NEWEST
    return Response(_document(version, services), media_type="application/json")


@lru_cache(maxsize=len(DOCUMENTS))
def _document(version: str, services: Services) -> bytes:
    """Return a document, written once: its route may be open to everyone."""
    content = document(version, services.routes, services.settings)
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _exposure(settings: Settings) -> Exposure:
    return settings.gateway.docs


ROUTES = (
    *(
        RouteSpec(
            method="GET",
            path=path,
            scope=None,
            kind=RouteKind.PAGE,
            handler=page,
            exposure=_exposure,
            content_policy=DOCS_POLICY,
        )
        for path in ("/", "/docs")
    ),
    *(
        RouteSpec(
            method="GET",
            path=path,
            scope=None,
            kind=RouteKind.PAGE,
            handler=openapi,
            api_version=version,
            exposure=_exposure,
        )
        for version, path in ((None, "/docs.json"), *DOCUMENTS.items())
    ),
    # What BentoML's app serves: its own document, and the scripts of the page.
    RouteSpec(
        method="GET",
        path="/schema.json",
        scope=None,
        kind=RouteKind.PAGE,
        handler=None,
        exposure=_exposure,
    ),
    RouteSpec(
        method="GET",
        path="/static_content/{file}",
        scope=None,
        kind=RouteKind.PAGE,
        handler=None,
        exposure=_exposure,
        cacheable=True,
    ),
)
