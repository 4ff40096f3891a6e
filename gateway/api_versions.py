"""The versions of the API: what a route is of, and which are known."""

from collections.abc import Mapping

HEADER = "API-Version"
# The route that the header chooses a version on; absent, it means the default.
NEGOTIATED = "/api/predict"
PREDICT: Mapping[str, str] = {"1": "/api/v1/predict", "2": "/api/v2/predict"}
FEEDBACK = "/api/v2/feedback"
# The route of BentoML's own clients; its body and its answer are those of version 2.
BENTOML = "/predict"
DOCUMENTS: Mapping[str, str] = {"1": "/api/v1/openapi.json", "2": "/api/v2/openapi.json"}
DEFAULT, NEWEST = "1", "2"
# As callers may write them.
KNOWN: Mapping[str, str] = {
    written: version for version in PREDICT for written in (version, f"v{version}")
}
VERSION_OF: Mapping[str, str] = {
    **{path: version for routes in (PREDICT, DOCUMENTS) for version, path in routes.items()},
    BENTOML: "2",
    FEEDBACK: "2",
}
