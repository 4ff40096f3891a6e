"""The audit log: append-only, hash-chained, whole after an interruption, one change at a time."""

import json
import os
import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kaiten.errors import AuditLogCorrupt, StateBusy
from lifecycle import audit_log as module
from lifecycle.audit_log import Action, AuditLog, AuditLogEntry, AuditLogEvent, Stage, serving_entry


def event(version: str = "1.0.0", stage: Stage | None = None) -> AuditLogEvent:
    action = Action.PROMOTED if stage else Action.REGISTERED
    return AuditLogEvent(action=action, version=version, who="tester", card="c" * 64, stage=stage)


def grow(log: AuditLog, *events: AuditLogEvent) -> list[AuditLogEntry]:
    for added in events:
        with log.transaction() as transaction:
            transaction.add(added)
    return log.entries()


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    return AuditLog(tmp_path / "logs", "ours")


def test_new_model_has_no_entries(log: AuditLog) -> None:
    assert log.entries() == []
    assert not log.path.exists()


def test_each_entry_is_chained_to_the_one_before(log: AuditLog) -> None:
    with capture_logs() as logs:
        entries = grow(log, event("1.0.0"), event("1.0.1"), event("1.0.2"))
    assert [entry.number for entry in entries] == [1, 2, 3]
    assert [entry.version for entry in entries] == ["1.0.0", "1.0.1", "1.0.2"]
    assert [entry.previous for entry in entries] == ["0" * 64, entries[0].digest, entries[1].digest]
    assert [line["head"] for line in logs] == [entry.digest for entry in entries]


@pytest.mark.parametrize("line", [0, 1, 2])
@pytest.mark.parametrize("key", ["version", "who", "card", "at", "number", "reason"])
def test_changed_entry_is_found(line: int, key: str, log: AuditLog) -> None:
    grow(log, event("1.0.0"), event("1.0.1"), event("1.0.2"))
    lines = log.path.read_text().splitlines()
    entry = json.loads(lines[line])
    replacements = {"number": 9, "at": "2020-01-01T00:00:00Z"}
    lines[line] = json.dumps(entry | {key: replacements.get(key, "someone-else")})
    log.path.write_text("\n".join(lines) + "\n")
    with pytest.raises(AuditLogCorrupt, match=f"line {line + 1}"):
        log.entries()


def test_removed_and_reordered_entries_are_found(log: AuditLog) -> None:
    grow(log, event("1.0.0"), event("1.0.1"), event("1.0.2"))
    first, second, third = log.path.read_text().splitlines()
    for remaining_lines in ([second, third], [first, third], [second, first, third]):
        log.path.write_text("\n".join(remaining_lines) + "\n")
        with pytest.raises(AuditLogCorrupt):
            log.entries()


def test_end_that_is_cut_off_is_found(log: AuditLog) -> None:
    grow(log, event("1.0.0"), event("1.0.1"), event("1.0.2"))
    lines = log.path.read_text().splitlines(keepends=True)
    log.path.write_text("".join(lines[:-1]))
    with pytest.raises(AuditLogCorrupt, match="line 3 is missing"):
        log.entries()


def test_any_reason_can_be_read_again(log: AuditLog) -> None:
    reason = 'split\u2028here, and \u0085 [/there], "quoted" and \\ more'
    with log.transaction() as transaction:
        transaction.add(event().model_copy(update={"reason": reason}))
    (entry,) = log.entries()
    assert entry.reason == reason


def test_torn_file_is_found(log: AuditLog) -> None:
    grow(log, event("1.0.0"), event("1.0.1"))
    log.path.write_text(log.path.read_text()[:-20])
    with pytest.raises(AuditLogCorrupt, match="line 2 is not an entry"):
        log.entries()


def test_nothing_is_written_if_the_change_fails(log: AuditLog) -> None:
    grow(log, event("1.0.0"))
    before = log.path.read_bytes()

    def fails() -> None:
        with log.transaction() as transaction:
            transaction.add(event("1.0.1"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert log.path.read_bytes() == before
    assert len(grow(log, event("1.0.1"))) == 2


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_process_that_is_killed_leaves_the_old_log(
    step: str, log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(log, event("1.0.0"))
    before = log.path.read_bytes()

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os if step == "fsync" else Path, step, kill)
        with pytest.raises(KeyboardInterrupt), log.transaction() as transaction:
            transaction.add(event("1.0.1"))
    assert log.path.read_bytes() == before
    assert [entry.version for entry in grow(log, event("1.0.2"))] == ["1.0.0", "1.0.2"]


def test_of_two_changes_at_once_one_waits_and_sees_the_other(log: AuditLog) -> None:
    holding, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with log.transaction() as transaction:
            holding.set()
            let_go.wait(10)
            transaction.add(event("1.0.0"))

    holder = threading.Thread(target=hold)
    holder.start()
    holding.wait(10)
    other = AuditLog(log.path.parent, "ours")
    threading.Timer(0, let_go.set).start()
    with other.transaction() as transaction:
        versions = [entry.version for entry in transaction.entries]
        transaction.add(event("1.0.1"))
    holder.join()
    assert versions == ["1.0.0"]
    assert [entry.version for entry in log.entries()] == ["1.0.0", "1.0.1"]


def test_lock_that_is_held_too_long_is_reported(
    log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOCK_TIMEOUT_S", 0)
    other = AuditLog(log.path.parent, "ours")
    with (
        log.transaction(),
        pytest.raises(StateBusy, match="Another process is changing the state of ours"),
        other.transaction(),
    ):
        pass


def test_newest_entry_of_a_stage_serves(log: AuditLog) -> None:
    staging, production = Stage.STAGING, Stage.PRODUCTION
    moves = (("1.0.0", None), ("1.0.0", staging), ("1.0.0", production), ("1.1.0", staging))
    entries = grow(log, *(event(*move) for move in moves))
    assert [serving_entry(entries, stage) for stage in Stage] == [entries[3], entries[2]]
    assert serving_entry(entries[:2], production) is None


def test_deleted_log_is_found_by_its_head(log: AuditLog) -> None:
    with log.transaction() as transaction:
        transaction.add(event("1.0.0"))
    log.path.unlink()
    with pytest.raises(AuditLogCorrupt, match="line 1 is missing"):
        log.entries()


def test_log_is_readable_by_other_users(log: AuditLog) -> None:
    before = os.umask(0o022)
    try:
        with log.transaction() as transaction:
            transaction.add(event("1.0.0"))
    finally:
        os.umask(before)
    assert log.path.stat().st_mode & 0o777 == 0o644
