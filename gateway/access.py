"""Every route, with who may call it and how; middleware/known_routes.py lets in no other."""

from dataclasses import dataclass

from gateway.schemas import Body, PredictV2Request


@dataclass(frozen=True, slots=True)
class Access:
    """Who may call a route, and how its body is treated.

    ``scope`` None means open to all. Model routes are counted, timed, and take a JSON body.
    ``checked_as`` is for a body that BentoML parses itself: in its own lenient way, so it is
    checked before BentoML sees it.
    """

    methods: tuple[str, ...]
    scope: str | None = None
    model_route: bool = False
    checked_as: type[Body] | None = None


OPEN = Access(("GET", "HEAD"))
_PREDICT = Access(("POST",), scope="predict", model_route=True)

# What the docs page is made of, as BentoML serves it: open as well.
STATIC_PREFIX = "/static_content/"
# The paths are the route templates that metrics are labelled with; no path that a caller invents
# gets a label.
ROUTES = {
    # Goes on as a version's own path; it stays where its version is refused.
    "/api/predict": _PREDICT,
    "/api/v1/predict": _PREDICT,
    "/api/v2/predict": _PREDICT,
    "/predict": Access(("POST",), scope="predict", model_route=True, checked_as=PredictV2Request),
    "/livez": OPEN,
    "/readyz": OPEN,
    "/healthz": OPEN,
    "/health": OPEN,
    "/metrics": OPEN,
    "/docs": OPEN,
    "/docs.json": OPEN,
    "/api/v1/openapi.json": OPEN,
    "/api/v2/openapi.json": OPEN,
    "/schema.json": OPEN,
    "/": OPEN,
}
