"""The middleware around every route of the process, in order."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

from starlette.types import ASGIApp

from gateway.access import AccessTable
from gateway.admission.body_memory import BodyMemory
from gateway.interfaces import BodiesWatch, EventSink, Traffic
from gateway.middleware.api_version import ApiVersionMiddleware
from gateway.middleware.authentication import AuthenticationMiddleware, Callers
from gateway.middleware.body import BodyMiddleware
from gateway.middleware.content_type import ContentTypeMiddleware
from gateway.middleware.deadline import DeadlineMiddleware
from gateway.middleware.dispatch import DirectMiddleware
from gateway.middleware.draining import DrainingMiddleware
from gateway.middleware.early_answer import EarlyAnswerMiddleware
from gateway.middleware.errors import ErrorsMiddleware
from gateway.middleware.headers import HeadersMiddleware
from gateway.middleware.known_routes import KnownRoutesMiddleware
from gateway.middleware.rate_limit import LimitsMiddleware
from gateway.middleware.request_context import RequestContextMiddleware
from gateway.middleware.request_metrics import TrafficMiddleware
from gateway.middleware.security_headers import SecurityHeadersMiddleware
from gateway.rate_limit.limiter import Limiter
from kaiten.settings.loader import Settings

Layer = Callable[[ASGIApp], ASGIApp]


@dataclass(frozen=True, slots=True)
class EdgeParts:
    """What the middleware needs."""

    settings: Settings
    callers: Callers
    handlers: Mapping[str, ASGIApp]
    traffic: Traffic
    bodies: BodiesWatch
    events: EventSink
    # None where every limit is off.
    limiter: Limiter | None = None
    is_draining: Callable[[], bool] = lambda: False


def layers(parts: EdgeParts) -> list[Layer]:
    """Return the middleware, each as it takes an app; the first is the innermost."""
    settings = parts.settings
    table = AccessTable(settings.gateway, settings.feedback)
    limits = settings.gateway
    memory = BodyMemory(limits.max_body_memory_bytes, limits.max_body_bytes, parts.bodies)
    found: list[Layer] = [
        partial(DirectMiddleware, handlers=parts.handlers),
        # After authentication: an unknown caller makes us read no body.
        partial(BodyMiddleware, limits=settings.gateway, memory=memory),
    ]
    # Between the two: it counts by subject, and one over its limits makes us read no body.
    if parts.limiter is not None:
        found.append(partial(LimitsMiddleware, limiter=parts.limiter))
    return [
        *found,
        partial(AuthenticationMiddleware, callers=parts.callers, table=table),
        # Before authentication, which looks the path up.
        partial(KnownRoutesMiddleware, table=table),
        # Around the body: one that trickles in counts as well.
        partial(DeadlineMiddleware, limit_s=settings.serving.request_timeout_s),
        # No layer around it waits for anything, so that what it answers needs no task.
        EarlyAnswerMiddleware,
        # Whatever the route: what must never be parsed is not looked at anywhere.
        ContentTypeMiddleware,
        # Before any header is taken for what it says.
        partial(HeadersMiddleware, limits=settings.gateway),
        # Around all that may refuse.
        ErrorsMiddleware,
        # Sees the status that the caller sees.
        partial(
            TrafficMiddleware,
            traffic=parts.traffic,
            events=parts.events,
            lines_per_s=settings.logging.max_request_lines_per_s,
        ),
        # Outside traffic, which is to know one path for a prediction, and the envelope, whose
        # answers name the version too.
        partial(ApiVersionMiddleware, settings=settings.api_versions),
        # Around every answer, the errors' as well.
        partial(SecurityHeadersMiddleware, tls=settings.tls.certificate is not None),
        partial(DrainingMiddleware, is_draining=parts.is_draining),
        # Outermost: everything else reads the context.
        RequestContextMiddleware,
    ]


def wrap(app: ASGIApp, parts: EdgeParts, without: Collection[type[ASGIApp]] = ()) -> ASGIApp:
    """Return the app with the middleware around it; tests leave one out, to show what it is for."""
    for layer in layers(parts):
        if getattr(layer, "func", layer) not in without:
            app = layer(app)
    return app
