import errno
import json
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from kaiten.errors import InvalidSettings
from kaiten.settings.models import LoggingSettings
from monitors.logging.rotating_files import (
    QueuedFileHandler,
    RotatingFile,
    check_folder,
    open_files,
)


@pytest.fixture
def console_events() -> Iterator[list[EventDict]]:
    """Capture the events of the console."""
    with capture_logs() as events:
        yield events


@contextmanager
def open_handler(path: Path, max_bytes: int = 1000, backups: int = 2) -> Iterator[logging.Handler]:
    handler = QueuedFileHandler("requests", RotatingFile(path, max_bytes, backups))
    yield handler
    handler.close()


def write(handler: logging.Handler, *lines: str) -> None:
    for line in lines:
        handler.handle(logging.LogRecord("kaiten.request", logging.INFO, "", 0, line, None, None))


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def test_lines_are_appended_also_by_the_next_process(tmp_path: Path) -> None:
    for line in ("one", "two ü"):
        with open_handler(tmp_path / "requests-1.log") as handler:
            write(handler, line)
    assert texts(tmp_path) == {"requests-1.log": "one\ntwo ü\n"}


def test_a_file_over_its_size_is_put_aside_and_the_oldest_is_deleted(tmp_path: Path) -> None:
    with open_handler(tmp_path / "a.log", max_bytes=4, backups=2) as handler:
        write(handler, "1", "2", "3", "4", "5", "6", "7", "8", "9")
    assert texts(tmp_path) == {"a.log": "9\n", "a.log.1": "7\n8\n", "a.log.2": "5\n6\n"}


def test_a_line_longer_than_a_file_is_kept_whole(tmp_path: Path) -> None:
    with open_handler(tmp_path / "a.log", max_bytes=4) as handler:
        write(handler, "a long line", "x")
    assert texts(tmp_path) == {"a.log": "x\n", "a.log.1": "a long line\n"}


def test_the_size_counts_what_an_earlier_process_wrote(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("1234567\n")
    with open_handler(tmp_path / "a.log", max_bytes=8) as handler:
        write(handler, "x")
    assert texts(tmp_path) == {"a.log": "x\n", "a.log.1": "1234567\n"}


def test_files_are_their_owners_alone(tmp_path: Path) -> None:
    with open_handler(tmp_path / "a.log", max_bytes=2) as handler:
        write(handler, "x", "y")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"a.log": 0o600, "a.log.1": 0o600}


def test_a_full_disk_is_told_of_once_and_fails_nobody(
    tmp_path: Path, console_events: list[EventDict]
) -> None:
    (tmp_path / "a.log").symlink_to("/dev/full")
    with open_handler(tmp_path / "a.log") as handler:
        write(handler, "x", "y", "z")
    (line,) = console_events
    assert (line["event"], line["file"]) == ("log_file_failed", str(tmp_path / "a.log"))
    assert line["fault"] == OSError(errno.ENOSPC, "No space left on device").strerror


@pytest.mark.parametrize("part", [0, 1, 7])
def test_a_line_that_is_cut_short_takes_no_other_with_it(
    part: int, tmp_path: Path, console_events: list[EventDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk, on which the next write of a few bytes still fits."""
    write_to, sizes = os.write, [part, 1]

    def short(file: int, line: bytes) -> int:
        return write_to(file, line[: sizes.pop(0)] if sizes else line)

    file = RotatingFile(tmp_path / "a.log")
    file.append("first\n")
    monkeypatch.setattr("monitors.logging.rotating_files.os.write", short)
    for _ in range(2):
        with pytest.raises(OSError, match="only a part"):
            file.append("second, which is lost\n")
    file.append("third\n")
    lines = texts(tmp_path)["a.log"].splitlines()
    assert (lines[0], lines[-1]) == ("first", "third")
    assert len(console_events) == 1


def test_a_line_that_a_crash_cut_short_takes_no_other_with_it(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("first\nsec")
    with open_handler(tmp_path / "a.log") as handler:
        write(handler, "third", "fourth")
    assert texts(tmp_path) == {"a.log": "first\nsec\nthird\nfourth\n"}


def test_a_line_that_is_cut_short_is_counted(
    tmp_path: Path, console_events: list[EventDict], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_to, sizes = os.write, [5]
    monkeypatch.setattr(
        "monitors.logging.rotating_files.os.write",
        lambda file, line: write_to(file, line[: sizes.pop(0)] if sizes else line),
    )
    with open_handler(tmp_path / "a.log") as handler:
        write(handler, "first line", "second")
    torn, notice, second = texts(tmp_path)["a.log"].splitlines()
    assert (torn, second) == ("first", "second")
    assert json.loads(notice)["count"] == 1
    assert len(console_events) == 1


def test_a_disk_that_has_room_again_is_written_to(
    tmp_path: Path, console_events: list[EventDict]
) -> None:
    path = tmp_path / "a.log"
    path.symlink_to("/dev/full")
    with open_handler(path) as handler:
        write(handler, "lost", "lost too")
        handler.flush()
        path.unlink()
        write(handler, "kept")
    notice, line = path.read_text(encoding="utf-8").splitlines()
    assert (json.loads(notice)["event"], json.loads(notice)["count"]) == ("log_lines_dropped", 2)
    assert line == "kept"
    assert len(console_events) == 1


def test_a_disk_that_hangs_holds_up_nobody(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    # A write to it waits for a reader, as one to a disk that hangs does.
    os.mkfifo(path)
    lines = [f"line {number}" for number in range(100)]
    with open_handler(path, max_bytes=1 << 20) as handler:
        write(handler, *lines)
        with path.open(encoding="utf-8") as reader:
            handler.flush()
            handler.close()
            assert reader.read().splitlines() == lines


def test_a_folder_that_is_gone_fails_nobody(
    tmp_path: Path, console_events: list[EventDict]
) -> None:
    (tmp_path / "file").touch()
    with open_handler(tmp_path / "file" / "a.log") as handler:
        write(handler, "x", "y")
    assert [line["event"] for line in console_events] == ["log_file_failed"]


def test_each_worker_has_files_of_its_own(tmp_path: Path) -> None:
    settings = LoggingSettings(folder=tmp_path / "logs")
    for worker in (1, 2):
        for name, handler in open_files(settings, worker).items():
            write(handler, f"{name} of {worker}")
            handler.close()
    assert texts(tmp_path / "logs") == {
        f"{stem}-{worker}.log": f"kaiten.{name} of {worker}\n"
        for stem, name in (("requests", "request"), ("security", "security"))
        for worker in (1, 2)
    }


def test_without_a_folder_there_are_no_files() -> None:
    assert open_files(LoggingSettings(), 1) == {}
    check_folder(LoggingSettings())


def test_a_folder_that_can_be_made_is_fine_and_not_made(tmp_path: Path) -> None:
    check_folder(LoggingSettings(folder=tmp_path / "to" / "be" / "made"))
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_folder_that_can_not_be_written_is_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidSettings) as caught:
        check_folder(LoggingSettings(folder=tmp_path / name))
    (detail,) = caught.value.details
    assert detail.field == "logging.folder"
    assert str(tmp_path / name) in detail.reason
