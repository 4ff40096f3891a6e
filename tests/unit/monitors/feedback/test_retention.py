from pathlib import Path

import pytest
from sqlalchemy import insert, update
from sqlalchemy.engine import make_url

from kaiten.settings.models import FeedbackSettings
from monitors.feedback.database import Database
from monitors.feedback.labels import WAIT_S
from monitors.feedback.retention import Pruner
from monitors.feedback.tables import feedback
from tests.unit.monitors.feedback.house import put, row, stored_feedback, truths

DAY_S = 86_400
NOW = 100.0 * DAY_S


def put_labels(database: Database, received: list[float], *, joined: bool = False) -> None:
    rows = [
        {
            "request_id": f"r{number}",
            "item": 0,
            "models": "*",
            "label": "x",
            "received_at": at,
            "joined": joined,
        }
        for number, at in enumerate(received)
    ]
    with database.writing() as connection:
        connection.execute(insert(feedback), rows)


def prune(database: Database, days: float = 30, rows: int = 1_000_000) -> int:
    # Without a check, as settings keep no fewer rows than a window has.
    settings = FeedbackSettings.model_construct(retention_days=days, max_rows=rows)
    return Pruner(database, settings).prune(NOW)


def remaining_items(database: Database) -> list[int]:
    return [item for _, item, _ in truths(database)]


def test_what_is_within_both_bounds_stays(database: Database) -> None:
    put(database, *(row(item=item, answered_at=NOW - 29 * DAY_S) for item in range(5)))
    put_labels(database, [NOW - 29 * DAY_S] * 5, joined=True)
    assert prune(database, rows=5) == 0
    assert remaining_items(database) == [0, 1, 2, 3, 4]
    assert len(stored_feedback(database)) == 5


def test_labels_whose_answer_nobody_looks_for_any_more_go(database: Database) -> None:
    put_labels(database, [NOW - WAIT_S - 1, NOW - WAIT_S + 1])
    assert prune(database) == 1
    assert {key for key, _ in stored_feedback(database)} == {"r1"}


def test_file_gets_smaller_by_what_was_deleted(tmp_path: Path) -> None:
    file = tmp_path / "quality.sqlite"
    database = Database(make_url(f"sqlite:///{file}"))
    put(database, *(row(item=item, answered_at=0.0, label="x" * 200) for item in range(5000)))
    pages = page_count(database)
    assert prune(database) == 5000
    assert page_count(database) < pages / 10
    database.close()


def page_count(database: Database) -> int:
    with database.reading() as connection:
        return int(connection.exec_driver_sql("PRAGMA page_count").scalar_one())


def test_what_is_too_old_goes(database: Database) -> None:
    ages = [31, 32, 29, 31, 1]
    put(database, *(row(item=age, answered_at=NOW - age * DAY_S) for age in ages))
    put_labels(database, [NOW - age * DAY_S for age in ages], joined=True)
    assert prune(database) == 6
    assert remaining_items(database) == [29, 1]
    assert {key for key, _ in stored_feedback(database)} == {"r2", "r4"}


@pytest.mark.parametrize("rows", [1, 3])
def test_what_is_one_too_many_goes_by_count_and_not_by_number(
    database: Database, rows: int
) -> None:
    # Numbers of which most were never given, as a sequence leaves them out.
    put(database, *(row(id=1 + 100 * item, item=item, answered_at=NOW) for item in range(5)))
    put_labels(database, [NOW + number for number in range(5)])
    assert prune(database, rows=rows) == 2 * (5 - rows)
    assert remaining_items(database) == [0, 1, 2, 3, 4][-rows:]
    request_ids = sorted(key for key, _ in stored_feedback(database))
    assert request_ids == [f"r{number}" for number in range(5)][-rows:]


def test_labels_that_wait_go_before_any_that_has_found_its_answer(database: Database) -> None:
    put_labels(database, [NOW + number for number in range(2600)])
    early = feedback.c.received_at < NOW + 500
    with database.writing() as connection:
        connection.execute(update(feedback).where(early).values(joined=True))
    assert prune(database, rows=700) == 1900
    request_ids = {key for key, _ in stored_feedback(database)}
    assert request_ids == {f"r{number}" for number in range(2600) if number < 500 or number >= 2400}
    assert prune(database, rows=400) == 300
    assert {key for key, _ in stored_feedback(database)} == {
        f"r{number}" for number in range(100, 500)
    }


def test_more_than_a_batch_goes_in_several(database: Database) -> None:
    put(database, *(row(item=item, answered_at=0.0) for item in range(2500)))
    put(database, row(item=2500, answered_at=NOW))
    assert prune(database) == 2500
    assert remaining_items(database) == [2500]
