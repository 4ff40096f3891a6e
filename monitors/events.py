"""The bus that hands prediction events to what monitors them: drift, feedback, metrics."""

from collections.abc import Callable, Sequence

import structlog

from kaiten.events import PredictionEvent

logger = structlog.get_logger(__name__)


class EventBus:
    """Calls each subscriber with the events of one answer, on the event loop, in order.

    A subscriber must return at once. One that needs time for an event queues it and works on a
    thread of its own; its queue is bounded in number, and in bytes if it holds texts.
    """

    def __init__(self) -> None:
        self._subscriptions: list[_Subscription] = []

    def subscribe(
        self,
        handle: Callable[[Sequence[PredictionEvent]], None],
        on_drop: Callable[[int], None],
    ) -> None:
        """Add a subscriber; ``on_drop`` counts the events that ``handle`` fails on."""
        self._subscriptions.append(_Subscription(handle, on_drop))

    def emit(self, events: Sequence[PredictionEvent]) -> None:
        """Hand the events of one answer to all subscribers; never blocks, never raises."""
        for subscription in self._subscriptions:
            subscription.emit(events)


class _Subscription:
    def __init__(
        self,
        handle: Callable[[Sequence[PredictionEvent]], None],
        on_drop: Callable[[int], None],
    ) -> None:
        self._handle = handle
        self._on_drop = on_drop
        self._failing = False

    def emit(self, events: Sequence[PredictionEvent]) -> None:
        try:
            self._handle(events)
            self._failing = False
        except Exception:
            self._on_drop(len(events))
            # Logged once, until it succeeds. The answer was sent, and other subscribers go first.
            if not self._failing:
                logger.exception("prediction_events_not_handled", count=len(events))
            self._failing = True
