from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from monitors.drift.archive.archive import Archive
from monitors.drift.spool import Source
from tests.s3_server import BUCKET, hung_server, s3_server
from tests.unit.monitors.drift.archive.windows import SOURCE, window

CANARY = Source("intent:1.0.0", "canary")
NEWER = Source("intent:1.1.0", "production")
TOPIC = Source("topic:2.0.0", "production")
S3 = f"s3://{BUCKET}/kaiten/profiles"
# Far less than any time-out of S3's library.
IMPATIENT_S = 0.2


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[EventDict]]:
    with capture_logs() as events:
        yield events


@pytest.fixture(params=["folder", "s3"])
def target(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str | None]:
    """Give a target of each kind; None is the folder in the archive's home."""
    if request.param == "folder":
        yield None
        return
    with s3_server(monkeypatch):
        yield S3


def read_profiles(archive: Archive, source: Source = SOURCE) -> list[bytes]:
    return [archive.read(profile) for profile in archive.profiles(source)]


def test_what_is_put_is_found_by_model_arm_time_and_pseudonym(
    target: str | None, tmp_path: Path
) -> None:
    archive = Archive(target, tmp_path)
    assert archive.sources() == []
    assert archive.profiles(SOURCE) == []
    for at in (120, 0, 60):
        archive.put(b"%d" % at, window(at))
    for source in (CANARY, NEWER, TOPIC):
        archive.put(source.model.encode(), window(source=source))
    archive.put(b"of one", window(), "0123456789abcdef")

    assert archive.sources() == [CANARY, SOURCE, NEWER, TOPIC]
    assert archive.sources("intent:1.0.0") == [CANARY, SOURCE]
    assert archive.sources("intent") == [CANARY, SOURCE, NEWER]
    assert archive.sources("nobody") == []
    assert read_profiles(archive) == [b"0", b"60", b"120"]
    assert read_profiles(archive, NEWER) == [b"intent:1.1.0"]
    since = archive.profiles(SOURCE)[1].ended_at
    assert [archive.read(profile) for profile in archive.profiles(SOURCE, since)] == [b"60", b"120"]
    (profile,) = archive.profiles(SOURCE, pseudonym="0123456789abcdef")
    assert archive.read(profile) == b"of one"
    assert (profile.rows, profile.pseudonym) == (1000, "0123456789abcdef")
    assert profile.ended_at - profile.started_at == timedelta(seconds=60)


def test_a_window_that_is_put_twice_is_there_once(target: str | None, tmp_path: Path) -> None:
    archive = Archive(target, tmp_path)
    archive.put(b"once", window())
    archive.put(b"again", window())
    assert read_profiles(archive) == [b"again"]


def test_a_profile_appears_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    Archive(str(tmp_path / "folder"), tmp_path).put(b"x" * 100_000, window())
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file.parent == tmp_path / "folder" / "intent" / "1.0.0" / "production"
    # One that is being written, or was when its writer was killed.
    file.with_name(f".{file.name}.0011").write_bytes(b"half")
    assert read_profiles(Archive(str(tmp_path / "folder"), tmp_path)) == [b"x" * 100_000]


class Clock:
    """Moves only when a test moves it."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_a_target_does_not_take_is_delivered_once_it_does(
    tmp_path: Path, logs: list[EventDict]
) -> None:
    clock = Clock()
    folder = tmp_path / "folder"
    folder.write_text("in the way of a folder")
    archive = Archive(str(folder), tmp_path, pause_s=60, clock=clock)
    archive.put(b"0", window(0))
    folder.unlink()
    # It is left alone for a while, however many are put.
    clock.now += 59
    archive.put(b"60", window(60))
    assert not folder.exists()
    clock.now += 1
    archive.put(b"120", window(120))
    assert read_profiles(archive) == [b"0", b"60", b"120"]
    assert not [path for path in (tmp_path / "profiles-waiting").rglob("*") if path.is_file()]
    assert [line["event"] for line in logs] == [
        "profiles_not_archived",
        "profiles_archived_again",
    ]


def test_what_waits_is_delivered_after_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.write_text("in the way of a folder")
    Archive(str(folder), tmp_path).put(b"0", window(0))
    folder.unlink()
    archive = Archive(str(folder), tmp_path)
    archive.put(b"60", window(60))
    assert read_profiles(archive) == [b"0", b"60"]


def test_the_oldest_are_dropped_where_too_many_wait(tmp_path: Path, logs: list[EventDict]) -> None:
    folder = tmp_path / "folder"
    folder.write_text("in the way of a folder")
    archive = Archive(str(folder), tmp_path, max_waiting=2)
    for at in (0, 60, 120):
        archive.put(b"%d" % at, window(at))
    folder.unlink()
    restarted = Archive(str(folder), tmp_path)
    restarted.put(b"180", window(180))
    assert read_profiles(restarted) == [b"60", b"120", b"180"]
    (dropped,) = (line for line in logs if line["event"] == "profiles_dropped")
    assert (dropped["count"], dropped["log_level"]) == (1, "warning")


def test_where_nothing_can_be_kept_a_window_is_judged_all_the_same(
    tmp_path: Path, logs: list[EventDict]
) -> None:
    (tmp_path / "home").write_text("in the way of a folder")
    archive = Archive(None, tmp_path / "home")
    archive.put(b"0", window())
    assert [line["event"] for line in logs] == ["profiles_not_archived", "profiles_dropped"]


def test_a_store_that_hangs_holds_nobody_and_gets_all_once_it_answers(
    tmp_path: Path, logs: list[EventDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    with hung_server(monkeypatch) as port:
        hung = Archive(S3, tmp_path, timeout_s=IMPATIENT_S, pause_s=0)
        hung.put(b"0", window(0))
        # The first write hangs still, and no other is started beside it.
        hung.put(b"60", window(60))
    assert [line["fault"] for line in logs] == ["TimeoutError"]
    with s3_server(monkeypatch, port):
        archive = Archive(S3, tmp_path)
        archive.put(b"120", window(120))
        assert read_profiles(archive) == [b"0", b"60", b"120"]


def test_a_store_that_is_away_or_refuses_costs_no_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(monkeypatch):
        Archive("s3://nobodys/prefix", tmp_path).put(b"0", window(0))
        archive = Archive(S3, tmp_path)
        archive.put(b"60", window(60))
        assert read_profiles(archive) == [b"0", b"60"]
