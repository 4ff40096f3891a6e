"""The page that shows the documents, each version's by choice."""

import hashlib
from base64 import b64encode

from gateway.api_versions import DOCUMENTS

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
