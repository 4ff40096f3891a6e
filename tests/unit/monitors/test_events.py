from collections.abc import Sequence

from structlog.testing import capture_logs

from kaiten.events import PredictionEvent
from monitors.events import EventBus
from tests.prediction_events import prediction_event
from tests.unit.gateway.house import Events


def test_each_subscriber_gets_every_event_in_order() -> None:
    first, second = Events(), Events()
    dropped: list[int] = []
    bus = EventBus()
    for subscriber in (first, second):
        bus.subscribe(subscriber.emit, dropped.append)
    bus.emit([prediction_event(item=0), prediction_event(item=1)])
    bus.emit([prediction_event(item=2)])
    assert [event.item for event in first.emitted] == [0, 1, 2]
    assert first.emitted == second.emitted
    assert dropped == []


def test_a_subscriber_that_fails_costs_its_own_events_and_is_logged_once() -> None:
    failures = [True, True, False, True]
    dropped: list[int] = []
    healthy = Events()

    def handle(_: Sequence[PredictionEvent]) -> None:
        if failures.pop(0):
            raise ValueError("a secret text")

    bus = EventBus()
    bus.subscribe(handle, dropped.append)
    bus.subscribe(healthy.emit, dropped.append)
    with capture_logs() as logs:
        for _ in range(4):
            bus.emit([prediction_event()] * 3)
    assert dropped == [3, 3, 3]
    assert len(healthy.emitted) == 12
    assert [line["event"] for line in logs] == ["prediction_events_not_handled"] * 2
