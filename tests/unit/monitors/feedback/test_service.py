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
from tests.served_models import served_models
from tests.unit.monitors.feedback.house import put, put_version_labels, row, stored_feedback
from tests.unit.monitors.feedback.test_job import RecordedMetrics
from tests.unit.monitors.feedback.test_windows import HONEST

LABEL = Label("request-1", 0, "billing")
HUNG = LABEL._replace(request_id="hung")


def make_service(url: URL, home: Path) -> FeedbackService:
    (home / FILE).write_text(HONEST.model_dump_json())
    models = served_models({"intent:1.0.0": home}, ["billing", "delivery"])
    return FeedbackService(url, home, FeedbackSettings(), models, RecordedMetrics())


def deadline_in(seconds: float = 60) -> float:
    return time.monotonic() + seconds


async def test_what_is_answered_labelled_and_measured(url: URL, tmp_path: Path) -> None:
    service = make_service(url, tmp_path)
    service.handle([prediction_event(confidence=0.8), prediction_event(item=1, confidence=0.6)])
    service.start()
    await service.take([LABEL], None, deadline_in())
    await asyncio.to_thread(service.close)
    restarted = make_service(url, tmp_path)
    (quality,) = await restarted.read(deadline_in())
    assert (quality.model, quality.version, quality.arm) == ("intent", "1.0.0", "production")
    assert quality.estimate is not None
    assert quality.estimate.accuracy == pytest.approx(0.7)
    await asyncio.to_thread(restarted.close)


async def test_database_that_hangs_is_given_up_before_the_deadline_and_holds_up_nobody(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    url = make_url(postgres.url)
    service, database = make_service(url, tmp_path), Database(url)
    with database.writing() as connection:
        # Writers of feedback wait for this lock.
        connection.execute(text(f"LOCK TABLE {feedback.name} IN ACCESS EXCLUSIVE MODE"))
        abandoned_call = asyncio.create_task(service.take([HUNG], None, deadline_in()))
        calls = [
            asyncio.create_task(service.take([HUNG], None, deadline_in(0.5))) for _ in range(20)
        ]
        # The loop continues meanwhile.
        await asyncio.sleep(0)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {DeadlineExceeded}
        abandoned_call.cancel()
        await asyncio.wait([abandoned_call])
    # Abandoned labels are not written, although a thread has them in hand before these reads.
    await asyncio.gather(*(service.read(deadline_in()) for _ in range(20)))
    assert HUNG[:2] not in stored_feedback(database)
    await service.take([HUNG._replace(label="delivery")], None, deadline_in())
    assert stored_feedback(database)[HUNG[:2]][0] == "delivery"
    await asyncio.to_thread(service.close)
    database.close()


async def test_what_becomes_of_labels_is_counted(
    database: Database, url: URL, tmp_path: Path
) -> None:
    put_version_labels(database)
    put(database, row())
    metrics = RecordedMetrics()
    service = FeedbackService(url, tmp_path, FeedbackSettings(), {}, metrics)
    labels = [LABEL, LABEL._replace(label="delivery"), LABEL._replace(item=1)]
    assert await service.take(labels, None, deadline_in()) == 2
    for unfit, models in ((LABEL._replace(label="parcels"), None), (LABEL, frozenset({"other"}))):
        with pytest.raises((InvalidInput, Forbidden)):
            await service.take([unfit], models, deadline_in())
    assert metrics.labels == {"joined": 2, "waiting": 1, "refused": 2}
    await asyncio.to_thread(service.close)


@pytest.mark.parametrize("seconds", [0.1, -1])
async def test_who_has_no_time_is_refused_and_nothing_is_kept(
    database: Database, url: URL, tmp_path: Path, seconds: float
) -> None:
    service = make_service(url, tmp_path)
    with pytest.raises(DeadlineExceeded):
        await service.take([LABEL], None, deadline_in(seconds))
    await asyncio.gather(*(service.read(deadline_in()) for _ in range(20)))
    assert stored_feedback(database) == {}
    await asyncio.to_thread(service.close)


async def test_locked_file_is_told_at_once_and_labels_are_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitors.feedback.database._LOCK_S", 0.05)
    monkeypatch.setattr("monitors.feedback.database.RETRY_S", 0)
    metrics, file = RecordedMetrics(), tmp_path / "quality.sqlite"
    service = FeedbackService(
        make_url(f"sqlite:///{file}"), tmp_path, FeedbackSettings(), {}, metrics
    )
    await service.take([LABEL], None, deadline_in())
    with closing(sqlite3.connect(file, isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        with capture_logs() as logs:
            for _ in range(3):
                with pytest.raises(DatabaseUnavailable):
                    await service.take([LABEL], None, deadline_in())
            # Without a label too: the watch tries.
            assert service._job.step()
        shell.rollback()
    assert [line["event"] for line in logs] == ["database_locked", "labels_not_taken"]
    assert metrics.labels["unavailable"] == 3
    assert metrics.unavailable.pop()
    with capture_logs() as logs:
        await service.take([LABEL], None, deadline_in())
        service._job.step()
    assert [line["event"] for line in logs] == ["database_unlocked", "labels_taken_again"]
    assert not metrics.unavailable.pop()
    await asyncio.to_thread(service.close)


async def test_server_that_is_frozen_is_told_and_not_waited_for_by_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with postgres_server() as server:
        metrics = RecordedMetrics()
        service = FeedbackService(make_url(server.url), tmp_path, FeedbackSettings(), {}, metrics)
        await service.take([LABEL], None, deadline_in())
        monkeypatch.setattr("monitors.feedback.service._TIMEOUT_S", 0.3)
        monkeypatch.setattr("monitors.feedback.service._HANG_S", 0.3)
        server.hang()
        with capture_logs() as logs:
            for _ in range(20):
                with pytest.raises(DatabaseUnavailable):
                    await service.take([LABEL], None, deadline_in())
        server.go_on()
    assert [line["event"] for line in logs].count("database_unavailable") == 1
    assert metrics.unavailable == [True]
    await asyncio.to_thread(service.close)
