from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kaiten.records import PredictionRecord
from kaiten.sections import Drift, Profiles
from monitors.profiles import Profiler
from monitors.tracking import ModelProfile
from tests.records import recorded
from tests.unit.gateway.house import CANARY, V2, House

# After monitors.tracking, which mends what whylogs asks of numpy.
from whylogs.core.view.dataset_profile_view import DatasetProfileView  # isort: skip

INTENT = "intent:1.0.0"
TOPIC = "topic:2.1.0"
WINDOW_S = 300.0


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Setup:
    """A profiler that is driven by hand."""

    def __init__(self, folder: Path, max_pending_records: int = 10_000) -> None:
        self.folder = folder
        self.dropped: list[int] = []
        self.clock = Clock()
        settings = Profiles(max_pending_records=max_pending_records)
        drift = Drift(window_s=WINDOW_S)
        self.profiler = Profiler(folder, settings, drift, self.dropped.append, self.clock)

    def end_window(self) -> None:
        self.clock.now += WINDOW_S
        self.profiler.step()

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def views(self, model: str) -> list[Any]:
        folder = self.folder.joinpath(*model.split(":"))
        return [DatasetProfileView.read(str(path)) for path in sorted(folder.glob("*.bin"))]


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def record(
    model: str = INTENT, length: int = 10, label: str = "billing", confidence: float = 0.5
) -> PredictionRecord:
    return recorded(model=model, text_length=length, label=label, confidence=confidence)


def rows(view: Any) -> int:  # noqa: ANN401  whylogs has no types
    return int(view.get_column("confidence").get_metric("counts").n.value)


def mean(view: Any, column: str) -> float:  # noqa: ANN401
    return float(view.get_column(column).get_metric("distribution").mean.value)


def labels(view: Any) -> dict[str, int]:  # noqa: ANN401
    items = view.get_column("label").get_metric("frequent_items").strings
    return {item.value: round(item.est) for item in items}


def test_answers_are_counted_per_model_version(setup: Setup) -> None:
    setup.profiler.put([record()] * 3 + [record(TOPIC)] * 2)
    setup.profiler.put([record("intent:1.1.0"), record()])
    setup.end_window()
    counts = {model: [*map(rows, setup.views(model))] for model in (INTENT, "intent:1.1.0", TOPIC)}
    assert counts == {INTENT: [4], "intent:1.1.0": [1], TOPIC: [2]}


def test_the_columns_of_a_record_are_profiled(setup: Setup) -> None:
    setup.profiler.put([record()])
    setup.end_window()
    (view,) = setup.views(INTENT)
    assert set(view.get_columns()) == {"text_length", "token_count", "label", "confidence"}


def test_means_are_right(setup: Setup) -> None:
    setup.profiler.put([record(length=10 * n, confidence=n / 10) for n in range(1, 10)])
    setup.end_window()
    (view,) = setup.views(INTENT)
    assert mean(view, "text_length") == pytest.approx(50)
    assert mean(view, "token_count") == pytest.approx(3)
    assert mean(view, "confidence") == pytest.approx(0.5)


def test_labels_are_counted(setup: Setup) -> None:
    setup.profiler.put([record(label=label) for label in ("billing", "other", "billing")])
    setup.end_window()
    (view,) = setup.views(INTENT)
    assert labels(view) == {"billing": 2, "other": 1}


def test_every_record_of_many_is_profiled(setup: Setup) -> None:
    setup.profiler.put([record(length=n) for n in range(9_999)])
    setup.end_window()
    (view,) = setup.views(INTENT)
    assert rows(view) == 9_999
    assert mean(view, "text_length") == pytest.approx(4_999)


def test_a_profile_is_written_when_its_window_ends_and_not_before(setup: Setup) -> None:
    setup.profiler.put([record()])
    setup.profiler.step()
    setup.clock.now += WINDOW_S - 1
    setup.profiler.step()
    assert setup.files() == []
    setup.clock.now += 1
    setup.profiler.step()
    assert [path.suffix for path in setup.files()] == [".bin"]


def test_a_new_window_begins_a_new_profile(setup: Setup) -> None:
    setup.profiler.put([record(label="billing")])
    setup.end_window()
    setup.profiler.put([record(label="other")] * 2)
    setup.profiler.step()
    assert len(setup.files()) == 1
    setup.end_window()
    assert [labels(view) for view in setup.views(INTENT)] == [{"billing": 1}, {"other": 2}]


def test_what_has_been_written_is_not_written_again(setup: Setup) -> None:
    setup.profiler.put([record()])
    setup.end_window()
    setup.end_window()
    setup.end_window()
    assert len(setup.files()) == 1


@pytest.mark.parametrize("turns", [1, 3])
def test_nothing_is_written_when_nothing_came(setup: Setup, turns: int) -> None:
    for _ in range(turns):
        setup.profiler.put([])
        setup.end_window()
    assert setup.files() == []
    assert setup.dropped == []


@pytest.mark.parametrize(
    ("puts", "kept", "dropped"),
    [
        ([5], 5, []),
        ([6], 5, [1]),
        ([4, 3, 2], 5, [2, 2]),
        ([5, 0], 5, []),
        ([100], 5, [95]),
    ],
)
def test_what_has_no_room_is_counted_as_dropped(
    tmp_path: Path, puts: list[int], kept: int, dropped: list[int]
) -> None:
    setup = Setup(tmp_path, max_pending_records=5)
    for count in puts:
        setup.profiler.put([record()] * count)
    setup.end_window()
    assert [*map(rows, setup.views(INTENT))] == [kept]
    assert setup.dropped == dropped


def test_there_is_room_again_after_a_turn(tmp_path: Path) -> None:
    setup = Setup(tmp_path, max_pending_records=5)
    for _ in range(3):
        setup.profiler.put([record()] * 5)
        setup.profiler.step()
    setup.end_window()
    assert [*map(rows, setup.views(INTENT))] == [15]
    assert setup.dropped == []


def test_a_profile_is_read_back_as_it_was_tracked(tmp_path: Path) -> None:
    profile = ModelProfile()
    profile.track([record(label="billing"), record(label="other")])
    profile.track([record(label="other")])
    profile.write(tmp_path / "profile.bin")
    view = DatasetProfileView.read(str(tmp_path / "profile.bin"))
    assert (rows(view), labels(view)) == (3, {"billing": 1, "other": 2})


def test_closing_a_profiler_that_never_started_ends(setup: Setup) -> None:
    setup.profiler.close()
    assert setup.files() == []


def test_closing_writes_what_is_left(setup: Setup) -> None:
    setup.profiler.start()
    setup.profiler.put([record()] * 3)
    setup.profiler.close()
    assert [*map(rows, setup.views(INTENT))] == [3]


async def test_no_text_is_in_a_profile(setup: Setup) -> None:
    await House(sink=setup.profiler).post(V2, {"inputs": [CANARY, f"billing {CANARY}"]})
    setup.end_window()
    (view,) = setup.views(INTENT)
    assert labels(view) == {"billing": 2}
    (path,) = setup.files()
    assert CANARY.encode() not in path.read_bytes()


def unwritable(folder: Path) -> Callable[[], None]:
    """Put a file where the profiles' folder should be; the call returned takes it away."""
    folder.write_text("in the way", encoding="utf-8")
    return folder.unlink


def test_what_can_not_be_written_goes_on_into_the_next_window(tmp_path: Path) -> None:
    mend = unwritable(tmp_path / "profiles")
    setup = Setup(tmp_path / "profiles")
    setup.profiler.put([record(), record(TOPIC)])
    setup.end_window()
    mend()
    setup.profiler.put([record(label="other")])
    setup.end_window()
    assert [labels(view) for view in setup.views(INTENT)] == [{"billing": 1, "other": 1}]
    assert len(setup.views(TOPIC)) == 1


def test_closing_ends_though_nothing_can_be_written(tmp_path: Path) -> None:
    unwritable(tmp_path / "profiles")
    setup = Setup(tmp_path / "profiles")
    setup.profiler.start()
    setup.profiler.put([record()])
    setup.profiler.close()
    assert (tmp_path / "profiles").is_file()
