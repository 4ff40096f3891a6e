from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from kaiten.events import PRODUCTION
from kaiten.settings.models import DriftSettings
from monitors.drift.spool import Source, Spool
from monitors.drift.windows import EndedWindow, claim_ended
from tests.unit.monitors.drift.profiles import answers

INTENT = "intent:1.0.0"
RANDOM = np.random.default_rng(20261128)
SETTINGS = DriftSettings(window_rows=100, window_s=60, min_rows=30)


class Setup:
    def __init__(self, folder: Path) -> None:
        self.now = 1000.0
        self.spool = Spool(folder, lambda: self.now)

    def put(self, *sizes: int, model: str = INTENT) -> None:
        for size in sizes:
            self.spool.put(Source(model, PRODUCTION), answers(RANDOM, size), [""] * size)

    def windows(self, model: str = INTENT) -> list[EndedWindow]:
        source = Source(model, PRODUCTION)
        return [*claim_ended(self.spool, source, SETTINGS, lambda: self.now)]

    def ended_rows(self) -> list[int]:
        return [window.rows for window in self.windows()]


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
    assert setup.ended_rows() == windows


@pytest.mark.parametrize(("rows", "age", "windows"), [(30, 60, [30]), (29, 6000, []), (30, 59, [])])
def test_a_window_of_enough_rows_ends_by_its_age(
    setup: Setup, rows: int, age: float, windows: list[int]
) -> None:
    setup.put(rows)
    setup.now += age
    assert setup.ended_rows() == windows


def test_age_counts_from_the_first_part_that_is_left(setup: Setup) -> None:
    setup.put(100)
    setup.now += 59
    setup.put(40)
    setup.now += 1
    assert setup.ended_rows() == [100]


def test_each_model_has_windows_of_its_own(setup: Setup) -> None:
    setup.put(60)
    setup.put(60, model="topic:2.1.0")
    assert setup.ended_rows() == []
    setup.put(60)
    (window,) = setup.windows()
    assert window.source == Source(INTENT, "production")
    assert setup.windows("topic:2.1.0") == []


def test_a_window_has_its_time_and_the_id_of_its_first_part(setup: Setup) -> None:
    setup.put(60)
    first = setup.spool.parts(Source(INTENT, "production"))[0].path.stem
    setup.now += 30
    setup.put(60)
    (window,) = setup.windows()
    assert window.id == first
    assert (window.started_at.timestamp(), window.ended_at.timestamp()) == (1000, 1030)


def test_a_window_comes_again_as_it_was_until_it_is_forgotten(setup: Setup) -> None:
    setup.put(40)
    setup.now += 60
    (claimed_window,) = setup.windows()
    # Its worker is killed before judging it, and more answers come before the next one looks.
    setup.put(70, 40)
    windows = setup.windows()
    assert [window.rows for window in windows] == [40, 110]
    assert windows[0] == claimed_window
    for window in windows:
        setup.spool.remove(window.parts)
    assert setup.ended_rows() == []
