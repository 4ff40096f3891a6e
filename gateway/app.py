"""The HTTP edge of one worker: its routes, and the middleware around them, in order."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from starlette.types import ASGIApp

from gateway import admin, protocols
from gateway.admission.body_memory import BodyMemory
from gateway.interfaces import EventSink, GatewayMetrics
from gateway.middleware.access import AccessMiddleware, Callers
from gateway.middleware.body import BodyMiddleware
from gateway.middleware.deadline import DeadlineMiddleware
from gateway.middleware.dispatch import DispatchMiddleware
from gateway.middleware.early_answer import EarlyAnswerMiddleware
from gateway.middleware.errors import ErrorsMiddleware
from gateway.middleware.rate_limit import RateLimitMiddleware
from gateway.middleware.request_context import RequestContextMiddleware
from gateway.middleware.request_headers import RequestHeadersMiddleware
from gateway.middleware.request_metrics import RequestMetricsMiddleware
from gateway.rate_limit.limiter import Limiter
from gateway.response_headers import ResponseHeaders
from gateway.routes import RouteTable
from gateway.services import Services
from kaiten.settings.loader import Settings

Layer = Callable[[ASGIApp], ASGIApp]


def route_table(settings: Settings) -> RouteTable:
    """Return the routes that the settings expose."""
    return RouteTable([*protocols.ROUTES, *admin.ROUTES], settings)


@dataclass(frozen=True, slots=True)
class EdgeParts:
    """The parts of the middleware."""

    services: Services
    callers: Callers
    metrics: GatewayMetrics
    events: EventSink
    # None if every limit is off.
    limiter: Limiter | None = None


def layers(parts: EdgeParts) -> list[Layer]:
    """Return the middleware, each as it takes an app; the first is the innermost."""
    services, settings = parts.services, parts.services.settings
    limits = settings.gateway
    memory = BodyMemory(limits.max_body_memory_bytes, limits.max_body_bytes, parts.metrics)
    rate_limit: list[Layer] = (
        [] if parts.limiter is None else [partial(RateLimitMiddleware, limiter=parts.limiter)]
    )
    return [
        partial(DispatchMiddleware, services=services),
        # After authentication and rate limits: no body is read for a caller that is rejected.
        partial(BodyMiddleware, limits=limits, memory=memory),
        # After authentication: it counts by subject.
        *rate_limit,
        partial(AccessMiddleware, callers=parts.callers),
        # Around the body: the time that it takes to arrive counts.
        partial(DeadlineMiddleware, limit_s=settings.serving.request_timeout_s),
        # No middleware around it waits for anything, so that an early answer needs no task.
        EarlyAnswerMiddleware,
        # Before any header is trusted, whatever the route.
        partial(RequestHeadersMiddleware, limits=limits),
        # Around everything that rejects requests.
        ErrorsMiddleware,
        # Sees the status that the caller sees.
        partial(
            RequestMetricsMiddleware,
            metrics=parts.metrics,
            events=parts.events,
            lines_per_s=settings.logging.max_request_lines_per_s,
        ),
        # Outermost: everything else reads the exchange, and every answer gets its headers.
        partial(
            RequestContextMiddleware,
            table=services.routes,
            headers=ResponseHeaders(services.routes, settings),
            is_draining=services.is_draining,
        ),
    ]


def wrap(app: ASGIApp, parts: EdgeParts) -> ASGIApp:
    """Return the app with the middleware around it."""
    for layer in layers(parts):
        app = layer(app)
    return app
