"""The whole of it, as a worker has it, over real databases."""

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from structlog.testing import capture_logs

from kaiten.errors import DatabaseUnavailable, DeadlineExceeded, Forbidden, InvalidInput
from kaiten.feedback import Label
from kaiten.settings.models import FeedbackSettings
from monitors.feedback.accuracy_estimate import FILE
from monitors.feedback.database import Database
from monitors.feedback.service import FeedbackService
from monitors.feedback.tables import feedback
from tests.postgres_server import PostgresServer, postgres_server
from tests.prediction_events import prediction_event
from tests.served_models import served
from tests.unit.monitors.feedback.house import kept, know, put, row
from tests.unit.monitors.feedback.test_job import Measured
from tests.unit.monitors.feedback.test_windows import HONEST

LABEL = Label("request-1", 0, "billing")
HUNG = LABEL._replace(request_id="hung")


def desk_of(url: URL, home: Path) -> FeedbackService:
    (home / FILE).write_text(HONEST.model_dump_json())
    models = served({"intent:1.0.0": home}, ["billing", "delivery"])
    return FeedbackService(url, home, FeedbackSettings(), models, Measured())


def in_time(seconds: float = 60) -> float:
    return time.monotonic() + seconds


async def test_what_is_answered_labelled_and_measured(url: URL, tmp_path: Path) -> None:
    desk = desk_of(url, tmp_path)
    desk.handle([prediction_event(confidence=0.8), prediction_event(item=1, confidence=0.6)])
    desk.start()
    await desk.take([LABEL], None, in_time())
    await asyncio.to_thread(desk.close)
    again = desk_of(url, tmp_path)
    (found,) = await again.read(in_time())
    assert (found.model, found.version, found.arm) == ("intent", "1.0.0", "production")
    assert found.estimate is not None
    assert found.estimate.accuracy == pytest.approx(0.7)
    await asyncio.to_thread(again.close)


async def test_database_that_hangs_is_given_up_before_the_deadline_and_holds_up_nobody(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    url = make_url(postgres.url)
    desk, other = desk_of(url, tmp_path), Database(url)
    with other.writing() as connection:
        # Writers of feedback wait for this lock.
        connection.execute(text(f"LOCK TABLE {feedback.name} IN ACCESS EXCLUSIVE MODE"))
        left = asyncio.create_task(desk.take([HUNG], None, in_time()))
        asked = [asyncio.create_task(desk.take([HUNG], None, in_time(0.5))) for _ in range(20)]
        # The loop continues meanwhile.
        await asyncio.sleep(0)
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(each) for each in found} == {DeadlineExceeded}
        left.cancel()
        await asyncio.wait([left])
    # Abandoned labels are not written, although a thread has them in hand before these reads.
    await asyncio.gather(*(desk.read(in_time()) for _ in range(20)))
    assert HUNG[:2] not in kept(other)
    await desk.take([HUNG._replace(label="delivery")], None, in_time())
    assert kept(other)[HUNG[:2]][0] == "delivery"
    await asyncio.to_thread(desk.close)
    other.close()


async def test_what_becomes_of_labels_is_counted(
    database: Database, url: URL, tmp_path: Path
) -> None:
    know(database)
    put(database, row())
    told = Measured()
    desk = FeedbackService(url, tmp_path, FeedbackSettings(), {}, told)
    labels = [LABEL, LABEL._replace(label="delivery"), LABEL._replace(item=1)]
    assert await desk.take(labels, None, in_time()) == 2
    for unfit, models in ((LABEL._replace(label="parcels"), None), (LABEL, frozenset({"other"}))):
        with pytest.raises((InvalidInput, Forbidden)):
            await desk.take([unfit], models, in_time())
    assert told.labels == {"joined": 2, "waiting": 1, "refused": 2}
    await asyncio.to_thread(desk.close)


@pytest.mark.parametrize("seconds", [0.1, -1])
async def test_who_has_no_time_is_refused_and_nothing_is_kept(
    database: Database, url: URL, tmp_path: Path, seconds: float
) -> None:
    desk = desk_of(url, tmp_path)
    with pytest.raises(DeadlineExceeded):
        await desk.take([LABEL], None, in_time(seconds))
    await asyncio.gather(*(desk.read(in_time()) for _ in range(20)))
    assert kept(database) == {}
    await asyncio.to_thread(desk.close)


async def test_locked_file_is_told_at_once_and_labels_are_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitors.feedback.database._LOCK_S", 0.05)
    monkeypatch.setattr("monitors.feedback.database.RETRY_S", 0)
    told, file = Measured(), tmp_path / "quality.sqlite"
    desk = FeedbackService(make_url(f"sqlite:///{file}"), tmp_path, FeedbackSettings(), {}, told)
    await desk.take([LABEL], None, in_time())
    with closing(sqlite3.connect(file, isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        with capture_logs() as logs:
            for _ in range(3):
                with pytest.raises(DatabaseUnavailable):
                    await desk.take([LABEL], None, in_time())
            # Without a label too: the watch tries.
            assert desk._job.step()
        shell.rollback()
    assert [line["event"] for line in logs] == ["database_locked", "labels_not_taken"]
    assert told.labels["unavailable"] == 3
    assert told.unavailable.pop()
    with capture_logs() as logs:
        await desk.take([LABEL], None, in_time())
        desk._job.step()
    assert [line["event"] for line in logs] == ["database_unlocked", "labels_taken_again"]
    assert not told.unavailable.pop()
    await asyncio.to_thread(desk.close)


async def test_server_that_is_frozen_is_told_and_not_waited_for_by_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with postgres_server() as server:
        told = Measured()
        desk = FeedbackService(make_url(server.url), tmp_path, FeedbackSettings(), {}, told)
        await desk.take([LABEL], None, in_time())
        monkeypatch.setattr("monitors.feedback.service._TIMEOUT_S", 0.3)
        monkeypatch.setattr("monitors.feedback.service._HANG_S", 0.3)
        server.hang()
        with capture_logs() as logs:
            for _ in range(20):
                with pytest.raises(DatabaseUnavailable):
                    await desk.take([LABEL], None, in_time())
        server.go_on()
    assert [line["event"] for line in logs].count("database_unavailable") == 1
    assert told.unavailable == [True]
    await asyncio.to_thread(desk.close)
