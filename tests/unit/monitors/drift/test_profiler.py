import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kaiten.settings.models import DriftSettings, ProfileSettings
from monitors.drift.profiler import Profiler
from monitors.drift.spool import Source, Spool, concatenate, read
from monitors.drift.windows import EndedWindow
from monitors.events import EventBus
from tests.prediction_events import prediction_event
from tests.unit.gateway.house import CANARY, TAG, V2, House

WINDOW_ROWS = 20


@dataclass
class Judge:
    """Notes the windows that are closed; a failure is raised instead."""

    closed: list[int] = field(default_factory=list)
    failure: Exception | None = None
    first_call: threading.Event = field(default_factory=threading.Event)

    def close(self, window: EndedWindow) -> None:
        self.first_call.set()
        if self.failure is not None:
            raise self.failure
        self.closed.append(window.rows)


class Worker:
    """A profiler that is driven by hand."""

    def __init__(
        self,
        folder: Path,
        max_pending_events: int = 10_000,
        pseudonym_of: Callable[[str], str] = lambda _: "",
        models: Sequence[str] = (TAG,),
    ) -> None:
        self.dropped: list[int] = []
        self.judge = Judge()
        self.close_calls = 0
        self.spool = Spool(folder / "spool")
        self.profiler = Profiler(
            folder,
            models,
            (
                ProfileSettings(max_pending_events=max_pending_events),
                DriftSettings(window_rows=WINDOW_ROWS, min_rows=10),
            ),
            self._close,
            self.dropped.append,
            pseudonym_of,
        )

    def _close(self, window: EndedWindow) -> None:
        self.close_calls += 1
        self.judge.close(window)

    def put(self, count: int) -> None:
        self.profiler.handle([prediction_event(model_tag=TAG)] * count)

    @property
    def spooled(self) -> int:
        return sum(part.rows for part in self.spool.parts(Source(TAG, "production")))


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(tmp_path)


def test_a_turn_spools_what_waits(worker: Worker) -> None:
    worker.put(3)
    worker.put(4)
    assert worker.spooled == 0
    worker.profiler.step()
    assert worker.spooled == 7
    worker.profiler.step()
    assert worker.spooled == 7


@pytest.mark.parametrize(
    ("puts", "rows", "dropped"),
    [
        ([5], 5, []),
        ([6], 5, [1]),
        ([4, 3, 2], 5, [2, 2]),
        ([5, 0], 5, []),
        ([100], 5, [95]),
    ],
)
def test_what_has_no_room_is_counted_as_dropped(
    tmp_path: Path, puts: list[int], rows: int, dropped: list[int]
) -> None:
    worker = Worker(tmp_path, max_pending_events=5)
    for count in puts:
        worker.put(count)
    worker.profiler.step()
    assert (worker.spooled, worker.dropped) == (rows, dropped)


def test_there_is_room_again_after_a_turn(tmp_path: Path) -> None:
    worker = Worker(tmp_path, max_pending_events=5)
    for _ in range(3):
        worker.put(5)
        worker.profiler.step()
    assert (worker.spooled, worker.dropped) == (15, [])


def test_a_full_window_is_closed_and_forgotten(worker: Worker) -> None:
    worker.put(WINDOW_ROWS)
    worker.profiler.step()
    assert worker.judge.closed == [WINDOW_ROWS]
    assert worker.spooled == 0


def test_what_judges_is_asked_for_only_where_there_is_a_window(worker: Worker) -> None:
    worker.put(WINDOW_ROWS - 1)
    worker.profiler.step()
    assert worker.close_calls == 0
    worker.put(1)
    worker.profiler.step()
    assert worker.close_calls == 1


def test_windows_count_over_all_workers_and_one_of_them_closes(tmp_path: Path) -> None:
    first, second = Worker(tmp_path), Worker(tmp_path)
    first.profiler.step()
    for worker in (second, first):
        worker.put(WINDOW_ROWS // 2)
    second.profiler.step()
    first.profiler.step()
    assert (first.judge.closed, second.judge.closed) == ([WINDOW_ROWS], [])


def test_another_worker_takes_over_once_one_is_gone(tmp_path: Path) -> None:
    first, second = Worker(tmp_path), Worker(tmp_path)
    first.profiler.step()
    second.profiler.step()
    first.put(WINDOW_ROWS)
    first.profiler.close()
    assert first.judge.closed == []
    second.profiler.step()
    assert second.judge.closed == [WINDOW_ROWS]


def test_a_window_that_can_not_be_judged_is_counted_and_holds_up_no_other(worker: Worker) -> None:
    worker.judge.failure = ValueError("what nobody thought of")
    worker.put(WINDOW_ROWS)
    with capture_logs() as logs:
        worker.profiler.step()
    assert worker.dropped == [WINDOW_ROWS]
    assert [line["event"] for line in logs] == ["window_not_judged"]
    worker.judge.failure = None
    worker.put(WINDOW_ROWS)
    worker.profiler.step()
    assert worker.judge.closed == [WINDOW_ROWS]


def test_a_window_that_a_full_disk_holds_up_is_tried_again_and_logged_once(worker: Worker) -> None:
    worker.judge.failure = OSError(28, "No space left on device")
    worker.put(WINDOW_ROWS)
    with capture_logs() as logs:
        for _ in range(3):
            worker.profiler.step()
    assert worker.dropped == []
    assert [line["event"] for line in logs] == ["windows_not_looked_at"]
    worker.judge.failure = None
    worker.profiler.step()
    assert worker.judge.closed == [WINDOW_ROWS]


def test_a_server_closes_the_windows_of_what_it_serves_and_of_nothing_else(tmp_path: Path) -> None:
    other = Worker(tmp_path, models=["topic:2.1.0"])
    # It comes first, and holds what it needs.
    other.profiler.step()
    worker = Worker(tmp_path)
    worker.put(WINDOW_ROWS)
    worker.profiler.step()
    other.profiler.step()
    assert (worker.judge.closed, other.judge.closed) == ([WINDOW_ROWS], [])


def test_what_can_not_be_spooled_is_counted(tmp_path: Path) -> None:
    (tmp_path / "in-the-way").write_text("a file")
    worker = Worker(tmp_path / "in-the-way")
    worker.put(3)
    with capture_logs() as logs:
        worker.profiler.step()
        worker.profiler.close()
    assert worker.dropped == [3]
    assert {line["event"] for line in logs} == {"profiling_failed", "windows_not_looked_at"}


def test_closing_a_profiler_that_never_started_spools_what_is_left(worker: Worker) -> None:
    worker.put(3)
    worker.profiler.close()
    assert worker.spooled == 3


def test_the_thread_takes_turns_until_it_is_closed(worker: Worker) -> None:
    worker.profiler.start()
    worker.put(WINDOW_ROWS)
    assert worker.judge.first_call.wait(30)
    worker.put(3)
    worker.profiler.close()
    assert worker.judge.closed == [WINDOW_ROWS]
    assert worker.spooled == 3


async def test_no_text_is_spooled(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    bus = EventBus()
    bus.subscribe(worker.profiler.handle, worker.dropped.append)
    await House(events=bus).post(V2, {"inputs": [CANARY, f"billing {CANARY}"]})
    worker.profiler.step()
    (part,) = worker.spool.parts(Source(TAG, "production"))
    assert concatenate(read([part]))["label"].tolist() == ["billing", "billing"]
    for encoding in ("utf-8", "utf-32-le"):
        assert CANARY.encode(encoding) not in part.path.read_bytes()


def test_neither_subject_nor_request_is_spooled(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    worker.profiler.handle(
        [prediction_event(model_tag=TAG, subject="kaiten|alice", request_id="canary-4711")]
    )
    worker.profiler.step()
    (part,) = worker.spool.parts(Source(TAG, "production"))
    content = part.path.read_bytes()
    for private in ("alice", "canary-4711"):
        for encoding in ("utf-8", "utf-32-le"):
            assert private.encode(encoding) not in content


def test_models_and_arms_are_spooled_apart(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    worker.profiler.handle([prediction_event(model_tag=TAG, arm=arm) for arm in ("a", "b", "a")])
    worker.profiler.step()
    sources = worker.spool.sources(TAG)
    sizes = {
        source.arm: sum(part.rows for part in worker.spool.parts(source)) for source in sources
    }
    assert sizes == {"a": 2, "b": 1}


def test_texts_that_wait_are_bounded_by_their_bytes(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    worker.profiler.handle([prediction_event(model_tag=TAG, text="x" * (20 << 20))] * 3)
    assert sum(worker.dropped) == 2
    worker.profiler.step()
    assert worker.spooled == 1


def test_subjects_are_spooled_under_their_pseudonyms(tmp_path: Path) -> None:
    worker = Worker(tmp_path, pseudonym_of=lambda subject: f"pseudonym of {len(subject)}")
    worker.put(2)
    worker.profiler.step()
    (part,) = worker.spool.parts(Source(TAG, "production"))
    assert read([part])[0]["pseudonym"].tolist() == ["pseudonym of 13"] * 2
