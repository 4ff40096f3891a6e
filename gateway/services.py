"""The services that handlers use; the composition root builds them."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from gateway.interfaces import DriftReporter, LabelStore, LatencySource
from gateway.prediction import PredictionHandler
from gateway.routes import RouteTable
from kaiten.errors import UnknownRoute
from kaiten.settings.loader import Settings


class MetricsReader:
    """Reads the metrics of all workers once at a time: requests meanwhile share the answer."""

    def __init__(self, expose: Callable[[], tuple[bytes, str]]) -> None:
        self._expose = expose
        self._reading: asyncio.Task[tuple[bytes, str]] | None = None

    async def exposition(self) -> tuple[bytes, str]:
        """Return them in Prometheus' text format, and its content type."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(asyncio.to_thread(self._expose))
        # A caller that leaves ends no thread.
        return await asyncio.shield(self._reading)


@dataclass(frozen=True, slots=True, eq=False)
class Services:
    """The services that every handler is called with."""

    settings: Settings
    routes: RouteTable
    prediction: PredictionHandler
    metrics: MetricsReader
    latency: LatencySource
    drift: DriftReporter
    # None if predictions are not stored.
    feedback_service: LabelStore | None
    is_draining: Callable[[], bool]

    @property
    def ready(self) -> bool:
        """Whether a load balancer is to send requests here."""
        return self.prediction.ready and not self.is_draining()

    @property
    def feedback(self) -> LabelStore:
        """The store of labels.

        Raises:
            UnknownRoute: Predictions are not stored, so that its routes are closed.

        """
        if self.feedback_service is None:
            raise UnknownRoute
        return self.feedback_service
