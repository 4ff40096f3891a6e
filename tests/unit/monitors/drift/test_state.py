import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from monitors.drift.spool import Source
from monitors.drift.state import (
    NO_BASELINE,
    NO_WINDOW,
    NOT_WATCHED,
    DriftState,
    DriftStates,
    ServedDrift,
    WindowState,
    initial_state,
)
from tests.served_models import served_models

SOURCE = Source("intent:1.0.0", "production")
AT = datetime(2026, 11, 28, tzinfo=UTC)


def state_after(windows: int, report: str | None = "r1") -> DriftState:
    window = WindowState(id=f"w-{windows}", rows=1000, started_at=AT, ended_at=AT)
    judged = {"windows": windows, "window": window, "drifted": False, "reason": None}
    return initial_state(SOURCE, report).model_copy(update=judged)


def test_a_state_is_kept_with_its_last_window(tmp_path: Path) -> None:
    states = DriftStates(tmp_path)
    for windows in (1, 2):
        states.put(SOURCE, state_after(windows), f"profile {windows}".encode())
    # Another process.
    state = DriftStates(tmp_path).get(SOURCE, "r1")
    assert state == state_after(2)
    assert DriftStates(tmp_path).last_window(SOURCE, state) == b"profile 2"
    (file,) = tmp_path.rglob("*.bin")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_version_begins_anew_with_another_reference(tmp_path: Path) -> None:
    states = DriftStates(tmp_path)
    states.put(SOURCE, state_after(5), b"profile")
    assert states.get(SOURCE, "r2") == initial_state(SOURCE, "r2")


def test_a_version_without_a_baseline_says_so() -> None:
    state = initial_state(SOURCE, None)
    assert (state.drifted, state.reason) == (None, NO_BASELINE)
    assert not state.has_baseline


def test_a_version_without_a_window_yet_says_so() -> None:
    state = initial_state(SOURCE, "r1")
    assert (state.drifted, state.reason, state.has_baseline) == (None, NO_WINDOW, True)
    assert state_after(1).has_baseline


def test_a_version_that_is_not_watched_says_so(tmp_path: Path) -> None:
    states = DriftStates(tmp_path)
    states.put(SOURCE, state_after(5), b"profile")
    report = ServedDrift(states, served_models({"intent:1.0.0": Path("reports/r1")}), watched=False)
    (state,) = report.drift()
    assert (state.drifted, state.reason, state.windows) == (None, NOT_WATCHED, 0)


def test_a_state_that_can_not_be_read_now_is_not_taken_for_none(tmp_path: Path) -> None:
    states = DriftStates(tmp_path)
    states.put(SOURCE, state_after(5), b"profile")
    (file,) = tmp_path.rglob("*.json")
    file.unlink()
    file.mkdir()
    with pytest.raises(IsADirectoryError):
        states.get(SOURCE, "r1")


def test_what_a_newer_version_has_kept_is_read(tmp_path: Path) -> None:
    states = DriftStates(tmp_path)
    states.put(SOURCE, state_after(5), b"profile")
    (file,) = tmp_path.rglob("*.json")
    file.write_text(file.read_text().replace('"model"', '"later": 1, "model"', 1))
    assert states.get(SOURCE, "r1") == state_after(5)


@pytest.mark.parametrize("content", ["", "{", '{"model": "intent"}', "[]"])
def test_a_state_that_is_broken_begins_anew(tmp_path: Path, content: str) -> None:
    states = DriftStates(tmp_path)
    states.put(SOURCE, state_after(5), b"profile")
    (file,) = tmp_path.rglob("*.json")
    file.write_text(content)
    assert states.get(SOURCE, "r1") == initial_state(SOURCE, "r1")


def test_a_last_window_that_is_gone_is_none(tmp_path: Path) -> None:
    states = DriftStates(tmp_path)
    assert states.last_window(SOURCE, initial_state(SOURCE, "r1")) is None
    states.put(SOURCE, state_after(1), b"profile")
    (file,) = tmp_path.rglob("*.bin")
    file.unlink()
    assert states.last_window(SOURCE, state_after(1)) is None


def test_every_served_version_is_reported_and_no_other(tmp_path: Path) -> None:
    states = DriftStates(tmp_path)
    states.put(SOURCE, state_after(3), b"profile")
    states.put(Source("old:1.0.0", "production"), state_after(9), b"profile")
    baselines = {"topic:2.0.0": None, "intent:1.0.0": Path("reports/r1")}
    report = ServedDrift(states, served_models(baselines))
    versions = [
        (state.model, state.version, state.windows, state.drifted) for state in report.drift()
    ]
    assert versions == [("topic", "2.0.0", 0, None), ("intent", "1.0.0", 3, False)]
