"""Liveness and readiness."""

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel
from starlette.responses import PlainTextResponse, Response

from gateway.exchange import Exchange
from gateway.routes import RouteKind, RouteSpec
from gateway.services import Services
from kaiten.errors import NotReady


class HealthResponse(BaseModel):
    """The service can answer; if it cannot, the answer is a 503 in the error envelope."""

    status: Literal["healthy"]
    timestamp: datetime


# Admission answers probes without a task: none of these may wait for anything.


async def live(_: Exchange, __: Services) -> Response:
    """Answer while the process runs."""
    return PlainTextResponse("\n")


async def ready(_: Exchange, services: Services) -> Response:
    """Answer while every model is ready and the worker does not drain.

    Raises:
        NotReady: Another worker or replica should be asked.

    """
    if not services.ready:
        raise NotReady
    return PlainTextResponse("\n")


async def health(_: Exchange, services: Services) -> HealthResponse:
    """Answer while every model is ready.

    Raises:
        NotReady: A model is not ready.

    """
    if not services.prediction.ready:
        raise NotReady
    return HealthResponse(status="healthy", timestamp=datetime.now(UTC))


ROUTES = (
    RouteSpec(
        method="GET",
        path="/health",
        scope=None,
        kind=RouteKind.PROBE,
        handler=health,
        summary="Whether the service can answer",
        response=HealthResponse,
        errors=frozenset({NotReady}),
    ),
    *(
        RouteSpec(
            method="GET",
            path=path,
            scope=None,
            kind=RouteKind.PROBE,
            handler=live,
            summary="Whether the process runs",
        )
        for path in ("/livez", "/healthz")
    ),
    RouteSpec(
        method="GET",
        path="/readyz",
        scope=None,
        kind=RouteKind.PROBE,
        handler=ready,
        summary="Whether every model can answer",
        errors=frozenset({NotReady}),
    ),
)
