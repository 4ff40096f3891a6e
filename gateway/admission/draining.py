"""A server that is told to end goes on answering until its callers have gone elsewhere."""

import asyncio
import signal
from types import FrameType

import structlog

logger = structlog.get_logger("kaiten.service")


class Drain:
    """Holds back SIGTERM for some seconds, in which this worker answers and says that it ends.

    Balancers, and the endpoints of a Service, learn of an end no sooner than it happens: what they
    send meanwhile is to be answered. Readiness is red from the signal on.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.active = False

    def start(self) -> None:
        """Stand before whoever handles SIGTERM now; on the event loop of the main thread."""
        if not self._seconds:
            return
        loop, end = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)

        def begin(number: int, frame: FrameType | None) -> None:
            # Once: a supervisor may signal the group and then each of its workers.
            if not self.active and callable(end):
                self.active = True
                logger.info("draining", seconds=self._seconds)
                loop.call_soon_threadsafe(loop.call_later, self._seconds, end, number, frame)

        signal.signal(signal.SIGTERM, begin)
