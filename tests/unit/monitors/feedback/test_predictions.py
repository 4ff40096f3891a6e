from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Connection, select
from sqlalchemy.engine import URL, make_url
from structlog.testing import capture_logs

from kaiten.errors import DatabaseUnavailable
from kaiten.settings.models import FeedbackSettings
from monitors.feedback.database import RETRY_S, Database
from monitors.feedback.predictions import PredictionLog, store_labels
from monitors.feedback.tables import predictions, version_labels
from tests.postgres_server import postgres_server
from tests.prediction_events import prediction_event
from tests.served_models import served_models
from tests.unit.monitors.feedback.house import truths

MODELS = served_models({"intent:1.0.0": None}, ["billing", "delivery"])


@dataclass
class Dropped:
    counts: list[int] = field(default_factory=list)

    def __call__(self, count: int) -> None:
        self.counts.append(count)


def log_of(database: Database, dropped: Dropped, room: int = 100) -> PredictionLog:
    return PredictionLog(
        database, MODELS, FeedbackSettings(max_pending_events=room), dropped, lambda: 1234.5
    )


def test_what_was_answered_is_written_without_a_text_or_a_subject(database: Database) -> None:
    dropped = Dropped()
    log = log_of(database, dropped)
    log.handle([prediction_event(item=1, confidence=0.25), prediction_event(item=2)])
    log.handle([prediction_event(request_id="request-2", label="other")])
    log.step()
    with database.reading() as connection:
        rows = [dict(row) for row in connection.execute(select(predictions)).mappings()]
    assert {key: value for key, value in rows[0].items() if key != "id"} == {
        "request_id": "request-1",
        "item": 1,
        "model": "intent",
        "version": "1.0.0",
        "arm": "production",
        "label": "billing",
        "confidence": 0.25,
        "answered_at": 1234.5,
        "truth": None,
    }
    assert [(row["request_id"], row["item"]) for row in rows[1:]] == [
        ("request-1", 2),
        ("request-2", 0),
    ]
    assert not dropped.counts


def test_what_does_not_fit_is_counted(database: Database) -> None:
    dropped = Dropped()
    log = log_of(database, dropped, room=3)
    log.handle([prediction_event(item=item) for item in range(5)])
    log.handle([prediction_event(item=5)])
    assert dropped.counts == [2, 1]
    log.step()
    log.handle([prediction_event(item=6)])
    log.step()
    assert [item for _, item, _ in truths(database)] == [0, 1, 2, 6]


def test_what_waits_is_written_at_the_end(database: Database) -> None:
    log = log_of(database, Dropped())
    log.start()
    log.handle([prediction_event(item=item) for item in range(7)])
    log.close()
    assert len(truths(database)) == 7


def test_what_was_answered_while_the_database_was_away_is_written_once_it_is_back() -> None:
    now, dropped = 100.0, Dropped()
    with postgres_server() as server:
        database = Database(make_url(server.url), lambda: now)
        log = log_of(database, dropped, room=3)
        log.handle([prediction_event(item=0)])
        log.step()
        server.stop()
        log.handle([prediction_event(item=1)])
        log.step()
        log.handle([prediction_event(item=2)])
        log.step()
        # What could not be written still takes its place.
        log.handle([prediction_event(item=3), prediction_event(item=4)])
        assert dropped.counts == [1]
        server.start()
        now += RETRY_S
        log.step()
        log.step()
        assert [item for _, item, _ in truths(database)] == [0, 1, 2, 3]
        database.close()


class Breaking(Database):
    """Loses its first connection just after the commit."""

    broken = False

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        with super().writing() as connection:
            yield connection
        if not self.broken:
            self.broken = True
            raise DatabaseUnavailable


def test_what_was_committed_as_the_connection_broke_is_not_written_twice(url: URL) -> None:
    database = Breaking(url)
    log = log_of(database, Dropped())
    log.handle([prediction_event(item=item) for item in range(3)])
    log.step()
    log.handle([prediction_event(item=3)])
    log.step()
    log.step()
    assert [item for _, item, _ in truths(database)] == [0, 1, 2, 3]
    database.close()


def test_row_that_can_not_be_written_costs_itself_and_no_more(database: Database) -> None:
    dropped = Dropped()
    log = log_of(database, dropped)
    database.migrate()
    bad = prediction_event(label=object())
    log.handle([bad if item in {3, 17} else prediction_event(item=item) for item in range(20)])
    with capture_logs() as logs:
        log.step()
    assert [line["event"] for line in logs] == ["predictions_not_written"] * 2
    assert dropped.counts == [1, 1]
    items = [item for _, item, _ in truths(database)]
    assert items == [item for item in range(20) if item not in {3, 17}]


def test_rows_of_which_none_can_be_written_are_logged_once_and_not_tried_for_ever(
    database: Database,
) -> None:
    dropped = Dropped()
    log = log_of(database, dropped, room=1000)
    database.migrate()
    with capture_logs() as logs:
        for _ in range(2):
            log.handle([prediction_event(label=object()) for _ in range(1000)])
            log.step()
        assert sum(dropped.counts) == 2000
        assert len(dropped.counts) < 200
        assert [line["event"] for line in logs] == ["predictions_not_written"]
        log.handle([prediction_event()])
        log.step()
        log.handle([prediction_event(label=object())])
        log.step()
    assert [line["event"] for line in logs] == ["predictions_not_written"] * 2
    assert len(truths(database)) == 1


def stored_labels(database: Database) -> set[tuple[str, str, str]]:
    with database.reading() as connection:
        return {(*row,) for row in connection.execute(select(version_labels))}


def test_labels_of_versions_that_answered_are_stored(database: Database) -> None:
    models = served_models({"intent:1.0.0": None, "silent:1.0.0": None}, ["a", "b"])
    log = PredictionLog(database, models, FeedbackSettings(), Dropped())
    for tag in ("intent:1.0.0", "unknown:1.0.0", "intent:1.0.0"):
        log.handle([prediction_event(model_tag=tag)])
        log.step()
    assert stored_labels(database) == {("intent", "1.0.0", "a"), ("intent", "1.0.0", "b")}


def test_a_version_that_was_registered_again_has_its_new_labels(database: Database) -> None:
    for tag, labels in (("other:1.0.0", "a"), ("intent:1.0.0", "ab"), ("intent:1.0.0", "bc")):
        with database.writing() as connection:
            store_labels(connection, tag, labels)
    assert stored_labels(database) == {
        ("intent", "1.0.0", "b"),
        ("intent", "1.0.0", "c"),
        ("other", "1.0.0", "a"),
    }
