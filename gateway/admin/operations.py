"""Routes for operators: metrics, latency, drift, and the quality of each version."""

import asyncio
from dataclasses import asdict, fields
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from gateway import feedback
from gateway.exchange import Exchange
from gateway.interfaces import RouteTimings
from gateway.routes import RouteKind, RouteSpec
from gateway.services import Services
from kaiten.errors import DatabaseUnavailable
from kaiten.feedback import Measures, VersionQuality

_DIGITS = 3
_NO_MEASURES = {field.name: None for field in fields(Measures)} | {"labelled": 0}


class RouteStats(BaseModel):
    """What a route has answered; times are of its successful answers, null where it had none.

    They run from the end of the request's headers to the end of the answer; a percentile is within
    1 % of the time of the answer that stands there.
    """

    route: str
    count: int = Field(ge=0, description="Successful answers (2xx).")
    errors: dict[str, int] = Field(
        description="All other answers, by status; 499 where the caller had left."
    )
    mean_ms: float | None
    min_ms: float | None
    max_ms: float | None
    p50_ms: float | None
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class StatsResponse(BaseModel):
    """Each route's answers since the server started, over all workers, those gone as well."""

    since: datetime
    routes: list[RouteStats]


class _FromAttributes(BaseModel):
    """A model that is read from another layer's object."""

    model_config = ConfigDict(from_attributes=True)


class FeatureDrift(_FromAttributes):
    """How far a feature of the answers is off, as the last window or the last two tell."""

    name: str
    drifted: bool
    effect: float = Field(ge=0, le=1, description="The size of the difference.")
    p_value: float = Field(
        ge=0, le=1, description="Of no difference at all; corrected for all features."
    )
    windows: int = Field(ge=1, le=2, description="How many windows these figures are of.")
    details: dict[str, float | str]


class DriftWindow(_FromAttributes):
    """The last window; it shows drift if its p-value is at most its level."""

    rows: int = Field(ge=1)
    started_at: datetime
    ended_at: datetime
    p_value: float | None
    level: float | None


class VersionDrift(_FromAttributes):
    """Whether the answers of a version are still like those that it was validated on."""

    model: str
    version: str
    arm: str
    drifted: bool | None = Field(description="null without a baseline or a window yet; see reason.")
    since: datetime | None
    report: str | None = Field(description="The validation report that holds it.")
    baseline_rows: int | None = Field(
        description="How many rows it has: with few, only large changes are significant."
    )
    reason: str | None
    windows: int = Field(ge=0, description="How many windows were judged.")
    window: DriftWindow | None
    features: list[FeatureDrift] = Field(description="Likely causes first.")


class DriftResponse(BaseModel):
    """The drift of each served version: the same from every worker."""

    models: list[VersionDrift]


class EstimatedAccuracy(BaseModel):
    """The accuracy to expect without labels, over the latest rows, with its 95 % interval."""

    model_config = ConfigDict(from_attributes=True)

    accuracy: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    rows: int = Field(ge=1)
    error: float = Field(ge=0, description="The mean absolute error, as measured at validation.")
    error_rows: int = Field(ge=1, description="Answers in each window that it was measured on.")
    error_windows: int = Field(ge=1, description="How many windows those were.")


class ModelQuality(BaseModel):
    """The quality of a version in an arm; null without labels, or without a calibration.

    It is the same from every worker of every host, except that a host that does not serve the
    version estimates nothing.
    """

    model: str
    version: str
    arm: str
    labelled: int = Field(ge=0, description="Labelled answers that the measures are of.")
    first_at: datetime | None
    last_at: datetime | None
    accuracy: float | None
    precision: float | None = Field(description="The mean over labels, as recall and f1.")
    recall: float | None
    f1: float | None
    estimate: EstimatedAccuracy | None
    observed_error: float | None = Field(
        description="How far an estimate for the labelled answers is from their accuracy."
    )
    report: str | None = Field(description="The validation report that estimates are made by.")
    reason: str | None = Field(description="Why there is no estimate.")


class QualityResponse(BaseModel):
    """Every version that has answered, by name, version and arm."""

    models: list[ModelQuality]


async def metrics(_: Exchange, services: Services) -> Response:
    """Return the metrics of all workers."""
    content, content_type = await services.metrics.exposition()
    return Response(content, headers={"Content-Type": content_type})


async def stats(_: Exchange, services: Services) -> StatsResponse:
    """Return how many answers each route gave, and how long they took."""
    # It reads files, one for each worker.
    since, routes = await asyncio.to_thread(services.latency.read)
    return StatsResponse(since=since, routes=[*map(_stats, routes)])


async def drift(_: Exchange, services: Services) -> DriftResponse:
    """Return whether the answers of each served version have drifted."""
    versions = await asyncio.to_thread(services.drift.drift)
    return DriftResponse(models=[*map(VersionDrift.model_validate, versions)])


async def quality(exchange: Exchange, services: Services) -> QualityResponse:
    """Return the quality of each version: the same from every worker that serves it.

    A host that does not serve a version has no calibration of it, and estimates nothing.
    """
    versions = await services.feedback.read(exchange.deadline)
    return QualityResponse(models=[*map(_quality, versions)])


def _quality(version: VersionQuality) -> ModelQuality:
    estimate = version.estimate and EstimatedAccuracy.model_validate(version.estimate)
    measures = asdict(version.measures) if version.measures else _NO_MEASURES
    return ModelQuality(
        model=version.model,
        version=version.version,
        arm=version.arm,
        estimate=estimate,
        report=version.report,
        reason=version.reason,
        **measures,
    )


def _stats(latency: RouteTimings) -> RouteStats:
    return RouteStats(
        route=latency.route,
        count=latency.count,
        errors={str(status): count for status, count in latency.others.items()},
        mean_ms=_ms(latency.mean),
        min_ms=_ms(latency.least),
        max_ms=_ms(latency.most),
        p50_ms=_ms(latency.quantile(0.5)),
        p90_ms=_ms(latency.quantile(0.9)),
        p95_ms=_ms(latency.quantile(0.95)),
        p99_ms=_ms(latency.quantile(0.99)),
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, _DIGITS)


ROUTES = (
    RouteSpec(
        method="GET",
        path="/metrics",
        scope=None,
        kind=RouteKind.SCRAPE,
        handler=metrics,
        summary="Prometheus metrics of all workers",
        exposure=lambda settings: settings.gateway.metrics,
    ),
    RouteSpec(
        method="GET",
        path="/ops/stats",
        scope="ops",
        kind=RouteKind.ADMIN,
        handler=stats,
        summary="How many answers each route gave, and how fast",
        response=StatsResponse,
    ),
    RouteSpec(
        method="GET",
        path="/ops/drift",
        scope="ops",
        kind=RouteKind.ADMIN,
        handler=drift,
        summary="Whether the answers of each served version have drifted",
        response=DriftResponse,
    ),
    RouteSpec(
        method="GET",
        path="/ops/quality",
        scope="ops",
        kind=RouteKind.ADMIN,
        handler=quality,
        summary="How good each version's answers are, by labels and without",
        response=QualityResponse,
        errors=frozenset({DatabaseUnavailable}),
        exposure=feedback.exposure,
    ),
)
