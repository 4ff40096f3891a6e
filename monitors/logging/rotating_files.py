"""Log files that rotate by size and are written on threads of their own."""

import logging
import math
import os
import stat
from contextlib import suppress
from pathlib import Path

import structlog

from kaiten.errors import Detail, InvalidSettings
from kaiten.settings.models import LoggingSettings
from monitors.logging.writer import LineWriter

_MIB = 1 << 20
# Readable by the owner only, even though subjects are pseudonyms in them.
_MODE = 0o600
# This logger writes to no file, so that a failing file does not log to itself.
logger = structlog.get_logger("kaiten.logs")


class RotatingFile:
    """Appends lines to a file, which is renamed to ``NAME.1`` when it would exceed ``max_bytes``.

    The standard library's RotatingFileHandler formats each line twice, writes on the thread that
    logs, and buffers lines that a full disk rejects.
    Only one thread of one process may write a file, or any number if it has no limit.
    """

    def __init__(self, path: Path, max_bytes: float = math.inf, backups: int = 1) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._backups = backups
        self._file: int | None = None
        self._size = 0
        self._ends_torn = False
        self._failure_logged = False

    def append(self, line: str) -> None:
        """Write a line with its newline. The first failure is logged.

        Raises:
            OSError: The line is lost.

        """
        try:
            self._write(line.encode("utf-8", "backslashreplace"))
        except OSError as error:
            self.close()
            self._log_first_failure(error)
            raise

    def close(self) -> None:
        """Close the file; the next line reopens it."""
        if self._file is not None:
            with suppress(OSError):
                os.close(self._file)
        self._file = None

    def _write(self, line: bytes) -> None:
        file = self._open() if self._file is None else self._file
        if self._size and self._size + len(line) > self._max_bytes:
            file = self._rotate()
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

    def _rotate(self) -> int:
        self.close()
        for number in range(self._backups, 0, -1):
            path = self._backup_path(number - 1)
            if path.exists():
                path.replace(self._backup_path(number))
        return self._open()

    def _backup_path(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path

    def _log_first_failure(self, error: OSError) -> None:
        if not self._failure_logged:
            self._failure_logged = True
            logger.error(
                "log_file_failed", file=str(self._path), fault=error.strerror or str(error)
            )


def _ends_torn(path: Path) -> bool:
    """Return whether the last line of a file has no end: a full disk or a crash cut it short.

    Nothing is cut off: another process may have appended to the file since.
    """
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:
        return False


class QueuedFileHandler(logging.Handler):
    """A logging handler that formats lines at once and writes them to the file on a thread.

    Lines are dropped and counted if the disk is slow, or if they cannot be written.
    """

    def __init__(self, target: str, file: RotatingFile) -> None:
        super().__init__()
        self._file = file
        self._writer = LineWriter(target, file.append)

    def emit(self, record: logging.LogRecord) -> None:
        self._writer.put(f"{self.format(record)}\n")

    def flush(self) -> None:
        self._writer.drain()

    def close(self) -> None:
        # If the disk hangs, the thread still uses the file.
        if self._writer.drain():
            self._file.close()
        super().close()


def open_files(settings: LoggingSettings, worker: int) -> dict[str, QueuedFileHandler]:
    """Return the handler of each logger with a file, none if no folder is set."""
    if settings.folder is None:
        return {}
    return {
        f"kaiten.{name}": QueuedFileHandler(
            stem,
            RotatingFile(
                settings.folder / f"{stem}-{worker}.log",
                settings.max_file_mib * _MIB,
                settings.backups,
            ),
        )
        for name, stem in (("request", "requests"), ("security", "security"))
    }


def check_folder(settings: LoggingSettings) -> None:
    """Check that the log's folder can be written or created, without creating it.

    Raises:
        InvalidSettings: It cannot.

    """
    if settings.folder is None:
        return
    folder = settings.folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = f"{folder} is not writable, because of {existing}; set another folder, or none"
        raise InvalidSettings([Detail("logging.folder", reason)], "the log's folder")
