"""The trail: append-only, sealed, whole after any interruption, and one change at a time."""

import json
import os
import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kaiten.errors import HistoryBroken, StateBusy
from lifecycle import audit_log as module
from lifecycle.audit_log import Action, Entry, Event, History, Stage, serving


def event(version: str = "1.0.0", stage: Stage | None = None) -> Event:
    action = Action.PROMOTED if stage else Action.REGISTERED
    return Event(action=action, version=version, who="tester", card="c" * 64, stage=stage)


def grow(history: History, *events: Event) -> list[Entry]:
    for each in events:
        with history.changing() as draft:
            draft.add(each)
    return history.entries()


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "trails", "ours")


def test_nothing_is_known_of_a_new_model(history: History) -> None:
    assert history.entries() == []
    assert not history.path.exists()


def test_each_entry_is_sealed_by_the_one_before(history: History) -> None:
    with capture_logs() as logs:
        found = grow(history, event("1.0.0"), event("1.0.1"), event("1.0.2"))
    assert [entry.number for entry in found] == [1, 2, 3]
    assert [entry.version for entry in found] == ["1.0.0", "1.0.1", "1.0.2"]
    assert [entry.previous for entry in found] == ["0" * 64, found[0].digest, found[1].digest]
    assert [log["head"] for log in logs] == [entry.digest for entry in found]


@pytest.mark.parametrize("line", [0, 1, 2])
@pytest.mark.parametrize("key", ["version", "who", "card", "at", "number", "reason"])
def test_changed_entry_is_found(line: int, key: str, history: History) -> None:
    grow(history, event("1.0.0"), event("1.0.1"), event("1.0.2"))
    lines = history.path.read_text().splitlines()
    entry = json.loads(lines[line])
    others = {"number": 9, "at": "2020-01-01T00:00:00Z"}
    lines[line] = json.dumps(entry | {key: others.get(key, "someone-else")})
    history.path.write_text("\n".join(lines) + "\n")
    with pytest.raises(HistoryBroken, match=f"line {line + 1}"):
        history.entries()


def test_removed_and_reordered_entries_are_found(history: History) -> None:
    grow(history, event("1.0.0"), event("1.0.1"), event("1.0.2"))
    first, second, third = history.path.read_text().splitlines()
    for left in ([second, third], [first, third], [second, first, third]):
        history.path.write_text("\n".join(left) + "\n")
        with pytest.raises(HistoryBroken):
            history.entries()


def test_end_that_is_cut_off_is_found(history: History) -> None:
    grow(history, event("1.0.0"), event("1.0.1"), event("1.0.2"))
    lines = history.path.read_text().splitlines(keepends=True)
    history.path.write_text("".join(lines[:-1]))
    with pytest.raises(HistoryBroken, match="line 3 is missing"):
        history.entries()


def test_any_reason_can_be_read_again(history: History) -> None:
    reason = 'split\u2028here, and \u0085 [/there], "quoted" and \\ more'
    with history.changing() as draft:
        draft.add(event().model_copy(update={"reason": reason}))
    (entry,) = history.entries()
    assert entry.reason == reason


def test_torn_file_is_found(history: History) -> None:
    grow(history, event("1.0.0"), event("1.0.1"))
    history.path.write_text(history.path.read_text()[:-20])
    with pytest.raises(HistoryBroken, match="line 2 is no entry"):
        history.entries()


def test_nothing_is_written_where_the_change_fails(history: History) -> None:
    grow(history, event("1.0.0"))
    before = history.path.read_bytes()

    def fails() -> None:
        with history.changing() as draft:
            draft.add(event("1.0.1"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert history.path.read_bytes() == before
    assert len(grow(history, event("1.0.1"))) == 2


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_process_that_is_killed_leaves_the_old_trail(
    step: str, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(history, event("1.0.0"))
    before = history.path.read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os if step == "fsync" else Path, step, killed)
        with pytest.raises(KeyboardInterrupt), history.changing() as draft:
            draft.add(event("1.0.1"))
    assert history.path.read_bytes() == before
    assert [entry.version for entry in grow(history, event("1.0.2"))] == ["1.0.0", "1.0.2"]


def test_of_two_changes_at_once_one_waits_and_sees_the_other(history: History) -> None:
    holding, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with history.changing() as draft:
            holding.set()
            let_go.wait(10)
            draft.add(event("1.0.0"))

    holder = threading.Thread(target=hold)
    holder.start()
    holding.wait(10)
    other = History(history.path.parent, "ours")
    threading.Timer(0, let_go.set).start()
    with other.changing() as draft:
        seen = [entry.version for entry in draft.entries]
        draft.add(event("1.0.1"))
    holder.join()
    assert seen == ["1.0.0"]
    assert [entry.version for entry in history.entries()] == ["1.0.0", "1.0.1"]


def test_who_waits_too_long_is_told(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 0)
    other = History(history.path.parent, "ours")
    with (
        history.changing(),
        pytest.raises(StateBusy, match="Somebody else is changing the state of ours"),
        other.changing(),
    ):
        pass


def test_newest_move_tells_who_serves(history: History) -> None:
    staging, production = Stage.STAGING, Stage.PRODUCTION
    moves = (("1.0.0", None), ("1.0.0", staging), ("1.0.0", production), ("1.1.0", staging))
    found = grow(history, *(event(*move) for move in moves))
    assert [serving(found, stage) for stage in Stage] == [found[3], found[2]]
    assert serving(found[:2], production) is None


def test_trail_that_was_deleted_is_told_by_its_head(history: History) -> None:
    with history.changing() as draft:
        draft.add(event("1.0.0"))
    history.path.unlink()
    with pytest.raises(HistoryBroken, match="line 1 is missing"):
        history.entries()


def test_trail_may_be_read_by_whoever_serves(history: History) -> None:
    before = os.umask(0o022)
    try:
        with history.changing() as draft:
            draft.add(event("1.0.0"))
    finally:
        os.umask(before)
    assert history.path.stat().st_mode & 0o777 == 0o644
