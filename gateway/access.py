"""Every route, with who may call it and how; middleware/known_routes.py lets in no other."""

import re
from dataclasses import dataclass, replace
from typing import Literal

from gateway.api_versions import BENTOML, FEEDBACK
from kaiten.settings.models import Exposure, FeedbackSettings, GatewaySettings

_READ = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class Access:
    """Who may call a route.

    ``scope`` None means open to all, and each row has to say so. Model routes are counted, timed,
    and take a JSON body. ``exposure`` is for a row that is open only if the setting of that name in
    the gateway's section says so, ``of_quality`` for one that is there only if predictions are
    kept.
    """

    methods: tuple[str, ...]
    scope: str | None
    model_route: bool = False
    exposure: Literal["docs", "metrics"] | None = None
    of_quality: bool = False


OPEN = Access(_READ, scope=None)
DOCS = Access(_READ, scope=None, exposure="docs")
METRICS = Access(_READ, scope=None, exposure="metrics")
OPERATIONS = Access(_READ, scope="ops")
_PREDICT = Access(("POST",), scope="predict", model_route=True)
_FEEDBACK = Access(("POST",), scope="feedback", model_route=True, of_quality=True)

# What the docs page is made of, as BentoML serves it.
STATIC_PREFIX = "/static_content/"
STATIC_TEMPLATE = f"{STATIC_PREFIX}*"
# One name, and no way up to another route.
_STATIC = re.compile(rf"{STATIC_PREFIX}[A-Za-z0-9_-][A-Za-z0-9._-]*")
# The paths are the route templates that metrics are labelled with; no path that a caller invents
# gets a label.
ROUTES = {
    # Goes on as a version's own path; it stays where its version is refused.
    "/api/predict": _PREDICT,
    "/api/v1/predict": _PREDICT,
    "/api/v2/predict": _PREDICT,
    BENTOML: _PREDICT,
    FEEDBACK: _FEEDBACK,
    "/livez": OPEN,
    "/readyz": OPEN,
    "/healthz": OPEN,
    "/health": OPEN,
    "/metrics": METRICS,
    "/ops/stats": OPERATIONS,
    "/ops/drift": OPERATIONS,
    "/ops/quality": Access(_READ, scope="ops", of_quality=True),
    "/docs": DOCS,
    "/docs.json": DOCS,
    "/api/v1/openapi.json": DOCS,
    "/api/v2/openapi.json": DOCS,
    "/schema.json": DOCS,
    "/": DOCS,
    STATIC_TEMPLATE: DOCS,
}
MODEL_ROUTES = tuple(path for path, access in ROUTES.items() if access.model_route)


class AccessTable:
    """The routes as the settings expose them: open, for the scope ``ops``, or not there at all."""

    def __init__(self, settings: GatewaySettings, quality: FeedbackSettings | None = None) -> None:
        kept = (quality or FeedbackSettings()).enabled
        exposures = {None: "open", "docs": settings.docs, "metrics": settings.metrics}
        self._rows = {
            path: _as(access, exposures[access.exposure])
            for path, access in ROUTES.items()
            if exposures[access.exposure] != "closed" and (kept or not access.of_quality)
        }

    def of(self, path: str) -> Access | None:
        """Return who may call a path, and how; None for one that is not there."""
        return self._rows.get(template_of(path) or "")


def template_of(path: str) -> str | None:
    """Return the template of the route that a path is on, or None where there is none."""
    if _STATIC.fullmatch(path):
        return STATIC_TEMPLATE
    return path if path in ROUTES else None


def _as(access: Access, exposure: Exposure) -> Access:
    return replace(access, scope="ops") if exposure == "token" else access
