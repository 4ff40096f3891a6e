from collections.abc import Sequence
from pathlib import Path

import pytest

from kaiten.sections import Drift
from monitors.spool import Source, Spool
from monitors.windows import ended
from tests.records import recorded

SETTINGS = Drift(window_rows=100, window_s=60, min_rows=30)


class Setup:
    def __init__(self, folder: Path) -> None:
        self.now = 1000.0
        self.spool = Spool(folder, lambda: self.now)

    def put(self, *sizes: int, model: str = "intent:1.0.0") -> None:
        for size in sizes:
            self.spool.put([recorded(model=model)] * size, lambda _: "")

    def ended(self) -> list[int]:
        return [window.rows for window in ended(self.spool, SETTINGS, lambda: self.now)]


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


@pytest.mark.parametrize(
    ("parts", "windows"),
    [
        ([], []),
        ([99], []),
        ([100], [100]),
        ([60, 40], [100]),
        ([60, 60], [120]),
        ([250], [250]),
        ([50, 50, 70, 30, 99], [100, 100]),
    ],
)
def test_a_window_ends_by_its_rows(
    setup: Setup, parts: Sequence[int], windows: Sequence[int]
) -> None:
    setup.put(*parts)
    assert setup.ended() == windows


@pytest.mark.parametrize(("rows", "age", "found"), [(30, 60, [30]), (29, 6000, []), (30, 59, [])])
def test_a_window_of_enough_rows_ends_by_its_age(
    setup: Setup, rows: int, age: float, found: list[int]
) -> None:
    setup.put(rows)
    setup.now += age
    assert setup.ended() == found


def test_age_counts_from_the_first_part_that_is_left(setup: Setup) -> None:
    setup.put(100)
    setup.now += 59
    setup.put(40)
    setup.now += 1
    assert setup.ended() == [100]


def test_each_model_has_windows_of_its_own(setup: Setup) -> None:
    setup.put(60)
    setup.put(60, model="topic:2.1.0")
    assert setup.ended() == []
    setup.put(60)
    (window,) = ended(setup.spool, SETTINGS, lambda: setup.now)
    assert window.source == Source("intent:1.0.0", "production")


def test_a_window_tells_its_time_and_is_known_by_its_first_part(setup: Setup) -> None:
    setup.put(60)
    first = setup.spool.parts(Source("intent:1.0.0", "production"))[0].path.stem
    setup.now += 30
    setup.put(60)
    (window,) = ended(setup.spool, SETTINGS, lambda: setup.now)
    assert window.id == first
    assert (window.started_at.timestamp(), window.ended_at.timestamp()) == (1000, 1030)
