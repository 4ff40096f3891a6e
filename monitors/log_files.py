"""Log files that are put aside by size, and written by a thread of their own."""

import logging
import math
import os
import stat
from contextlib import suppress
from pathlib import Path

import structlog

from kaiten.errors import Detail, InvalidSettings
from kaiten.sections import Logging
from monitors.lines import LineWriter

_MIB = 1 << 20
# Who may read the files: subjects are pseudonyms in them, and yet they are nobody else's business.
_MODE = 0o600
# It writes to no file, or a failure would come back here.
logger = structlog.get_logger("kaiten.logs")


class RotatedFile:
    """Appends lines to a file, which is put aside as ``NAME.1`` once it is over its size.

    Not the standard library's: that one formats each line twice, and keeps what a full disk did not
    take. One process and one thread may write a file, or several where it has no size.
    """

    def __init__(self, path: Path, max_bytes: float = math.inf, backups: int = 1) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._backups = backups
        self._file: int | None = None
        self._size = 0
        self._ends_torn = False
        self._told = False

    def append(self, line: str) -> None:
        """Write a line with its end; OSError where it is lost. The first loss is logged."""
        try:
            self._write(line.encode("utf-8", "backslashreplace"))
        except OSError as error:
            self.close()
            self._tell_once(error)
            raise

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        if self._file is not None:
            with suppress(OSError):
                os.close(self._file)
        self._file = None

    def _write(self, line: bytes) -> None:
        file = self._open() if self._file is None else self._file
        if self._size and self._size + len(line) > self._max_bytes:
            file = self._put_aside()
        if self._ends_torn:
            line = b"\n" + line
        written = os.write(file, line)
        self._size += written
        if written < len(line):
            # The rest is lost. The file is opened again for the next line, which begins a new one.
            raise OSError("only a part of a line could be written")
        self._ends_torn = False

    def _open(self) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, _MODE)
        status = os.fstat(self._file)
        self._size = status.st_size
        self._ends_torn = stat.S_ISREG(status.st_mode) and _ends_torn(self._path)
        return self._file

    def _put_aside(self) -> int:
        self.close()
        for number in range(self._backups, 0, -1):
            older = self._named(number - 1)
            if older.exists():
                older.replace(self._named(number))
        return self._open()

    def _named(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path

    def _tell_once(self, error: OSError) -> None:
        if not self._told:
            self._told = True
            logger.error(
                "log_file_failed", file=str(self._path), fault=error.strerror or str(error)
            )


def _ends_torn(path: Path) -> bool:
    """Return whether the last line of a file has no end: a full disk or a crash cut it short.

    Nothing is cut off: another process may have appended to the file since.
    """
    try:
        with path.open("rb") as file:
            return (
                file.seek(0, os.SEEK_END) > 0
                and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"
            )
    except OSError:
        return False


class QueuedFile(logging.Handler):
    """Formats a line where it is logged, and leaves the file to a thread: a slow disk costs lines.

    A line that cannot be written is lost and counted, and the next one is tried.
    """

    def __init__(self, target: str, file: RotatedFile) -> None:
        super().__init__()
        self._file = file
        self._writer = LineWriter(target, file.append)

    def emit(self, record: logging.LogRecord) -> None:
        self._writer.put(f"{self.format(record)}\n")

    def flush(self) -> None:
        self._writer.drain()

    def close(self) -> None:
        # Where the disk hangs, the thread keeps the file.
        if self._writer.drain():
            self._file.close()
        super().close()


def open_files(settings: Logging, worker: int) -> dict[str, QueuedFile]:
    """Return the file of each logger that has one; empty where no folder is set."""
    if settings.folder is None:
        return {}
    return {
        f"kaiten.{name}": QueuedFile(
            stem,
            RotatedFile(
                settings.folder / f"{stem}-{worker}.log",
                settings.max_file_mb * _MIB,
                settings.backups,
            ),
        )
        for name, stem in (("request", "requests"), ("security", "security"))
    }


def check_folder(settings: Logging) -> None:
    """Raise InvalidSettings where the log's folder can not be written; it is not made here."""
    if settings.folder is None:
        return
    folder = settings.folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = f"{folder} can not be written ({there}); name another folder, or leave it empty"
        raise InvalidSettings([Detail("logging.folder", reason)], "the log's folder")
