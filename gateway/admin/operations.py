"""The routes for operators: what the service knows of itself, over all workers."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.interfaces import DriftSource, RouteTimes, TimesSource
from gateway.responses import json_answer
from gateway.schemas import DriftResponse, RouteStats, StatsResponse, VersionDrift

_DIGITS = 3


class Operations:
    """The handlers; a caller has the scope ops."""

    def __init__(self, times: TimesSource, drift: DriftSource) -> None:
        self._times = times
        self._drift = drift

    def routes(self) -> list[Route]:
        """Return the routes, to stand beside all others."""
        return [Route("/ops/stats", self.stats), Route("/ops/drift", self.drift)]

    async def stats(self, _: Request) -> Response:
        """Tell how many answers each route gave, and how long they took."""
        # It reads files, one a worker.
        since, routes = await asyncio.to_thread(self._times.read)
        return json_answer(StatsResponse(since=since, routes=[*map(_stats, routes)]))

    async def drift(self, _: Request) -> Response:
        """Tell whether the answers of each served version have drifted."""
        found = await asyncio.to_thread(self._drift.drift)
        return json_answer(DriftResponse(models=[*map(VersionDrift.model_validate, found)]))


def _stats(times: RouteTimes) -> RouteStats:
    return RouteStats(
        route=times.route,
        count=times.count,
        errors={str(status): count for status, count in times.others.items()},
        mean_ms=_ms(times.mean),
        min_ms=_ms(times.least),
        max_ms=_ms(times.most),
        p50_ms=_ms(times.quantile(0.5)),
        p90_ms=_ms(times.quantile(0.9)),
        p95_ms=_ms(times.quantile(0.95)),
        p99_ms=_ms(times.quantile(0.99)),
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, _DIGITS)
