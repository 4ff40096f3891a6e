"""Feedback over two workers, stored in SQLite and in a PostgreSQL that restarts."""

import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from sqlalchemy import Row, Table, create_engine, select
from sqlalchemy.engine import URL, make_url

from monitors.feedback.tables import feedback, predictions
from tests.acceptance.watch import Watch
from tests.postgres_server import postgres_server
from tests.servers import TLS, Server, environment, serving, until_all_ready

TEXTS = ["I forgot my password", "Where is my parcel?"]
ANSWERS = ["login_problem", "order_status"]
FEEDBACK = "/api/v2/feedback"
ENOUGH = 2000


@dataclass
class Callers:
    """Ask and send feedback, each on a new connection, and record the accepted labels."""

    server: Server
    url: URL
    # When each answer came, by the request's id.
    answered: dict[str, float] = field(default_factory=dict)
    accepted: dict[tuple[str, int], str] = field(default_factory=dict)
    refused: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        token = self.server.token("tester", "predict", "feedback", "ops")
        self.headers = {"Authorization": f"Bearer {token}", "Connection": "close"}

    def post(self, path: str, body: object, request_id: str) -> int:
        """Return the status, or 0 where the connection broke."""
        headers = self.headers | {"X-Request-ID": request_id}
        try:
            return httpx.post(
                f"{self.server.url}{path}", json=body, headers=headers, timeout=60, verify=TLS
            ).status_code
        except httpx.TransportError:
            return 0

    def ask_and_label(self, true_labels: list[str]) -> None:
        """Ask both texts, and say what they should have been answered with."""
        request_id = uuid.uuid4().hex
        status = self.post("/api/v2/predict", {"inputs": TEXTS}, request_id)
        if status == 200:
            self.answered[request_id] = time.monotonic()
            labels = {(request_id, item): label for item, label in enumerate(true_labels)}
            self.send_feedback(labels)
        else:
            self.refused[status] += 1

    def send_feedback(self, labels: dict[tuple[str, int], str]) -> None:
        rows = [
            {"request_id": id_, "item": item, "label": label}
            for (id_, item), label in labels.items()
        ]
        status = self.post(FEEDBACK, {"feedback": rows}, "")
        if status == 200:
            self.accepted |= labels
        else:
            self.refused[status] += 1

    def ask_many(self, count: int, true_labels: list[str]) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: self.ask_and_label(true_labels), range(count)))

    def ask_many_while(self, event: Callable[[], None], count: int) -> None:
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(self.ask_many, count, ANSWERS)
            event()
            asking.result()

    def kill_while_they_ask(self, victim: psutil.Process) -> None:
        """Kill a worker once some labels of this load were accepted."""
        before = len(self.accepted)

        def kill() -> None:
            self.wait_until(lambda: self.quality()["labelled"] > 0 and len(self.accepted) > before)
            victim.kill()

        self.ask_many_while(kill, 120)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.server.url}{path}", headers=self.headers, timeout=60, verify=TLS)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        assert any(condition() for _ in range(ENOUGH)), self.server.process.log[-3000:]

    def quality(self) -> dict[str, float]:
        models = self.get("/ops/quality").json()["models"]
        measures: dict[str, float] = models[0] if models else {"labelled": 0}
        return measures

    def stored_labels(self) -> dict[tuple[str, int], str]:
        return {(row.request_id, row.item): row.label for row in self._rows(feedback)}

    def stored_request_ids(self) -> set[str]:
        return {row.request_id for row in self._rows(predictions)}

    def _rows(self, table: Table) -> Sequence[Row[Any]]:
        engine = create_engine(self.url)
        with engine.connect() as connection:
            rows = connection.execute(select(table)).all()
        engine.dispose()
        return rows


def serve(bentoml_home: Path, home: Path, **extra: str) -> dict[str, str]:
    return environment(
        bentoml_home, home, BENTOML_CONFIG_OPTIONS="services.kaiten_service.workers=2", **extra
    )


@pytest.fixture
def sqlite_callers(bentoml_home: Path, tmp_path: Path) -> Iterator[Callers]:
    with serving(serve(bentoml_home, tmp_path)) as server:
        until_all_ready(server.url)
        yield Callers(server, URL.create("sqlite", database=str(tmp_path / "quality.sqlite")))


def test_labels_tell_how_good_answers_are_and_outlast_a_killed_worker(
    sqlite_callers: Callers,
) -> None:
    callers = sqlite_callers
    callers.ask_many(15, ANSWERS)
    callers.ask_many(5, [ANSWERS[0], "refund_status"])
    assert len(callers.accepted) == 40
    callers.wait_until(lambda: callers.quality()["labelled"] == 40)
    # The same, whichever worker answers.
    assert {callers.quality()["accuracy"] for _ in range(20)} == {35 / 40}
    series = r'model_accuracy{arm="production",model="support-intent",version="1.0.0"} 0.875\b'
    callers.wait_until(lambda: re.search(series, callers.get("/metrics").text) is not None)

    unknown = callers.post(
        FEEDBACK,
        {
            "feedback": [
                {"request_id": next(iter(callers.answered)), "item": 0, "label": "nonsense"}
            ]
        },
        "",
    )
    assert unknown == 422
    victim, _ = Watch(callers.server.process.popen.pid).workers()
    before = {*callers.answered}
    callers.kill_while_they_ask(victim)
    # The killed worker lost the request, or the other one was too busy.
    assert set(callers.refused) <= {0, 503}
    until_all_ready(callers.server.url)
    callers.ask_many(10, ANSWERS)
    # An answer may have been lost on its way, and no label that was accepted.
    assert callers.stored_labels().items() >= callers.accepted.items()
    last = max(callers.answered, key=callers.answered.__getitem__)
    callers.wait_until(lambda: last in callers.stored_request_ids())
    # The killed worker took with it what it had in hand, and nothing that was known before.
    assert before <= callers.stored_request_ids()
    files = [*Path(str(callers.url.database)).parent.glob("quality.sqlite*")]
    content = "".join(file.read_text("latin-1") for file in files)
    assert last in content
    assert not re.search("I forgot|parcel|tester", content)


def test_postgresql_that_restarts_loses_nothing(bentoml_home: Path, tmp_path: Path) -> None:
    with postgres_server() as postgres:
        env = serve(bentoml_home, tmp_path, KAITEN_STATE__DATABASE_URL=postgres.url)
        # It starts, and serves, without one.
        postgres.stop()
        with serving(env) as server:
            until_all_ready(server.url)
            callers = Callers(server, make_url(postgres.url))
            callers.ask_many(5, ANSWERS)
            assert callers.accepted == {}
            assert callers.refused == {503: 5}
            assert callers.get("/ops/quality").status_code == 503
            postgres.start()
            callers.wait_until(lambda: callers.get("/ops/quality").status_code == 200)
            callers.wait_until(lambda: callers.answered.keys() <= callers.stored_request_ids())

            callers.refused.clear()
            callers.ask_many_while(postgres.restart, 60)
            assert set(callers.refused) <= {503}
            callers.wait_until(lambda: callers.get("/ops/quality").status_code == 200)
            callers.ask_many(5, ANSWERS)
            assert callers.accepted
            postgres.restart()
            callers.wait_until(lambda: callers.get("/ops/quality").status_code == 200)
            callers.wait_until(lambda: callers.answered.keys() <= callers.stored_request_ids())
            before = len(callers.accepted)
            callers.ask_many(5, ANSWERS)
            assert len(callers.accepted) == before + 10
            assert callers.stored_labels().items() >= callers.accepted.items()
            callers.wait_until(lambda: callers.quality()["labelled"] >= len(callers.accepted))
            assert callers.quality()["accuracy"] == 1.0
            log = server.process.log
        assert postgres.password not in log
        assert "database_unavailable" in log
        assert "database_available" in log
        assert "Traceback" not in log
