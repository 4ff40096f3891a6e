"""How a worker ends: it answers until its callers have gone elsewhere, and then leaves."""

import asyncio
import os
import signal
import threading
from types import FrameType

import structlog

from kaiten.settings.models import ServingSettings
from monitors.logging import writer

logger = structlog.get_logger("kaiten.service")
# What closing takes once nothing is being answered any more.
_GRACE_PERIOD_S = 5


class Drain:
    """Holds back SIGTERM for some seconds, in which this worker answers, but is not ready.

    Load balancers, and the endpoints of a Kubernetes Service, learn of an end no sooner than it
    happens: what they send meanwhile is to be answered.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.active = False

    def start(self) -> None:
        """Take the place of the present handler of SIGTERM; on the main thread's event loop."""
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


def end_process(serving: ServingSettings) -> None:
    """End this process in good order, or at once if callers hold it up; another replaces it."""
    patience_s = serving.drain_s + serving.request_timeout_s + _GRACE_PERIOD_S
    last_resort = threading.Timer(patience_s, leave)
    last_resort.daemon = True
    last_resort.start()
    signal.raise_signal(signal.SIGTERM)


def leave(code: int = 1) -> None:
    """Write the log, and end this process without waiting for its threads."""
    writer.flush()
    os._exit(code)
