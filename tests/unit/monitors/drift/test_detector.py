from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from kaiten.events import BASELINE_FILE
from kaiten.settings.models import DriftSettings
from monitors.drift.detector import DriftDetector, significance_level
from monitors.drift.features import Columns
from monitors.drift.spool import Source, Spool
from monitors.drift.state import BASELINE_UNREADABLE, DriftState, DriftStates
from monitors.drift.whylogs_profiles import Profile
from monitors.drift.windows import EndedWindow, claim_ended
from tests.served_models import served_models
from tests.unit.monitors.drift.profiles import answers, usual

RANDOM = np.random.default_rng(20261128)
SETTINGS = DriftSettings(window_rows=500, min_rows=100)
MODEL = "intent:1.0.0"
SOURCE = Source(MODEL, "production")


@dataclass
class Shelf:
    """Keeps profiles in memory."""

    profiles: list[tuple[str, str | None, int]] = field(default_factory=list)

    def put(self, content: bytes, window: EndedWindow, pseudonym: str | None) -> None:
        self.profiles.append((window.id, pseudonym, Profile.read(content).count("label")))


class Setup:
    def __init__(self, folder: Path, *, has_baseline: bool = True) -> None:
        self.spool, self.shelf = Spool(folder / "spool"), Shelf()
        self.states = DriftStates(folder / "drift")
        report = folder / "report-1"
        report.mkdir()
        (report / BASELINE_FILE).write_bytes(usual(RANDOM, 3000).serialize())
        self.report = report if has_baseline else None
        self.detector = DriftDetector(
            self.states, served_models({MODEL: self.report}), self.shelf.put, SETTINGS
        )

    def put(self, columns: Columns, pseudonym_of: Callable[[str], str] = lambda _: "") -> None:
        pseudonyms = [pseudonym_of(f"s{row}") for row in range(len(columns["label"]))]
        self.spool.put(SOURCE, columns, pseudonyms)

    def close(self) -> DriftState:
        for window in claim_ended(self.spool, SOURCE, SETTINGS):
            self.detector.close(window)
            self.spool.remove(window.parts)
        return self.state

    @property
    def state(self) -> DriftState:
        return self.states.get(SOURCE, self.report.name if self.report else None)

    def window(self, **changed: np.ndarray) -> DriftState:
        self.put(answers(RANDOM, 500, **changed))
        return self.close()


def far_distances() -> np.ndarray:
    return RANDOM.normal(0.8, 0.1, 500)


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def test_usual_windows_show_no_drift(setup: Setup) -> None:
    for windows in range(1, 6):
        state = setup.window()
        assert (state.drifted, state.windows, state.discoveries) == (False, windows, 0)
    assert not any(feature.drifted for feature in state.features)
    assert state.window is not None
    assert state.window.rows == 500


def test_drift_is_reported_with_its_cause_and_lasts_until_it_is_quiet(setup: Setup) -> None:
    setup.window()
    onset = setup.window(distance=far_distances())
    assert onset.window is not None
    assert (onset.drifted, onset.discoveries, onset.since) == (True, 1, onset.window.started_at)
    assert [feature.name for feature in onset.features if feature.drifted] == ["distance"]
    # The next window is looked at with the one before, which still shows it.
    states = [setup.window() for _ in range(4)]
    assert [state.drifted for state in states] == [True, True, False, False]
    assert states[-1].discoveries == 1
    assert states[0].since == onset.since
    assert states[-1].since is None


def test_drift_that_goes_on_is_one_drift(setup: Setup) -> None:
    states = [setup.window(distance=far_distances()) for _ in range(4)]
    assert [state.drifted for state in states] == [True] * 4
    assert {state.since for state in states} == {states[0].since}
    assert {state.discoveries for state in states} == {1}


def test_without_a_baseline_windows_are_kept_and_nothing_is_reported(tmp_path: Path) -> None:
    setup = Setup(tmp_path, has_baseline=False)
    state = setup.window(distance=far_distances())
    assert (state.drifted, state.windows, state.features) == (None, 1, ())
    assert [rows for _, _, rows in setup.shelf.profiles] == [500]


def test_a_window_that_was_judged_before_its_judge_was_killed_counts_once(setup: Setup) -> None:
    setup.put(answers(RANDOM, 500))
    (window,) = claim_ended(setup.spool, SOURCE, SETTINGS)
    setup.detector.close(window)
    # Its parts are still there, and more has come: the next one finds them.
    setup.put(answers(RANDOM, 200))
    assert setup.close().windows == 1
    assert setup.spool.claimed(SOURCE) == []
    assert sum(part.rows for part in setup.spool.parts(SOURCE)) == 200
    # Archived again under the same name, because the earlier worker may not have done it.
    assert [name for name, _, _ in setup.shelf.profiles] == [window.id] * 2


def test_a_state_that_could_not_be_kept_leaves_the_old_one(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.window()
    before = setup.state

    def raise_disk_full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("monitors.drift.state.replace_file", raise_disk_full)
    setup.put(answers(RANDOM, 500))
    with pytest.raises(OSError, match="No space"):
        setup.close()
    assert setup.state == before
    monkeypatch.undo()
    assert setup.close().windows == 2


def test_pseudonyms_have_profiles_of_their_own_and_the_rest_is_put_together(setup: Setup) -> None:
    # Ten of twenty answers, and many of one, whose profile would tell what it was.
    names = [f"large-{index % 10}" if index < 200 else f"small-{index}" for index in range(500)]
    setup.put(answers(RANDOM, 500), lambda subject: names[int(subject[1:])])
    setup.close()
    pseudonyms = {pseudonym: rows for _, pseudonym, rows in setup.shelf.profiles}
    assert pseudonyms.pop(None) == 500
    assert pseudonyms.pop("others") == 300
    assert pseudonyms == {f"large-{index}": 20 for index in range(10)}


def test_of_too_many_pseudonyms_the_largest_have_profiles_of_their_own(setup: Setup) -> None:
    setup.put(answers(RANDOM, 1200), lambda subject: f"t{int(subject[1:]) % 60:02}")
    setup.close()
    pseudonyms = {pseudonym for _, pseudonym, _ in setup.shelf.profiles}
    assert len(pseudonyms) == 1 + 50 + 1


def test_a_baseline_that_cannot_be_read_is_logged(setup: Setup) -> None:
    assert setup.window().drifted is False
    assert setup.report is not None
    content = (setup.report / BASELINE_FILE).read_bytes()
    (setup.report / BASELINE_FILE).write_bytes(b"nonsense")
    with capture_logs() as logs:
        state = setup.window()
    assert (state.drifted, state.reason, state.windows) == (None, BASELINE_UNREADABLE, 2)
    assert [line["event"] for line in logs] == ["baseline_unreadable"]
    (setup.report / BASELINE_FILE).write_bytes(content)
    state = setup.window()
    assert (state.drifted, state.reason, state.baseline_rows) == (False, None, 3000)


def test_beginning_and_end_of_a_drift_are_logged_once(setup: Setup) -> None:
    with capture_logs() as logs:
        setup.window()
        for _ in range(3):
            setup.window(distance=far_distances())
        for _ in range(4):
            setup.window()
    events = [(line["event"], line["features"]) for line in logs]
    assert events == [("drift_began", ["distance"]), ("drift_ended", [])]


def test_states_hold_when_they_began_in_universal_time(setup: Setup) -> None:
    state = setup.window(distance=far_distances())
    assert isinstance(state.since, datetime)
    assert state.since.tzinfo is not None


def test_all_levels_together_stay_under_the_rate() -> None:
    assert sum(significance_level(window, 0, 0.05) for window in range(1, 200_000)) < 0.05


def test_each_discovery_raises_the_level() -> None:
    assert significance_level(10, 3, 0.05) == pytest.approx(4 * significance_level(10, 0, 0.05))


def test_levels_fall_and_stay_above_zero() -> None:
    levels = [
        significance_level(window, 0, 0.05) for window in (1, 2, 3, 10, 100, 10_000, 1_000_000)
    ]
    assert levels == sorted(levels, reverse=True)
    assert levels[-1] > 1e-10


def test_drift_is_detected_in_few_streams_without_drift() -> None:
    random = np.random.default_rng(20261128)
    levels = np.array([significance_level(window, 0, 0.05) for window in range(1, 1001)])
    false = (random.random((2000, 1000)) <= levels).any(axis=1).mean()
    assert 0.005 < false < 0.05
