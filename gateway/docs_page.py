"""The page that shows the documents, each version's by choice."""

from gateway.versions import DOCUMENTS

# Newest first: it is what the page opens with.
_URLS = ", ".join(
    f'{{url: "{path.removeprefix("/")}", name: "Version {version}"}}'
    for version, path in reversed([*DOCUMENTS.items()])
)
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
<script>
SwaggerUIBundle({{
  urls: [{_URLS}],
  dom_id: "#swagger-ui",
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIStandalonePreset],
  layout: "StandaloneLayout",
}})
</script>
</body>
</html>
"""
