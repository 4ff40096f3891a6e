from pathlib import Path, PurePosixPath

from monitors.drift.archive.outbox import Outbox

EARLY, LATE = PurePosixPath("b/2/arm/20260101.bin"), PurePosixPath("a/1/20260102.bin")


def test_what_waits_comes_oldest_first_whatever_folder_it_is_for(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "box", max_files=2)
    assert outbox.waiting() == []
    outbox.put(LATE, b"late")
    outbox.put(EARLY, b"early")
    assert outbox.waiting() == [EARLY, LATE]
    assert [outbox.read(path) for path in outbox.waiting()] == [b"early", b"late"]
    outbox.remove(EARLY)
    outbox.remove(EARLY)
    assert outbox.waiting() == [LATE]


def test_of_too_many_the_oldest_go_and_are_named(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, max_files=1)
    assert outbox.put(EARLY, b"early") == []
    assert outbox.put(EARLY, b"again") == []
    assert outbox.put(LATE, b"late") == [EARLY]
    assert outbox.waiting() == [LATE]


def test_what_is_being_written_does_not_wait_yet(tmp_path: Path) -> None:
    (tmp_path / ".20260101.bin.0011").write_bytes(b"half")
    assert Outbox(tmp_path, max_files=1).waiting() == []
