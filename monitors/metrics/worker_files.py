"""Reads the metrics files of all workers of a server, and merges those of dead workers.

Each worker writes files named ``KIND_PID.SUFFIX``. The files of dead workers are folded into one
file, so that restarts do not fill the disk. A reader takes no lock: it reads the fold, then all
files that the fold does not include, and starts again if the fold has changed meanwhile.
"""

import glob
import json
import os
import re
import shutil
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil
import structlog

from kaiten.files import is_out_of_descriptors, replace_file

if sys.platform != "win32":
    # Commands other than `kaiten serve` run on Windows too.
    import fcntl

# prometheus_client's format: the number of bytes in use, padding to 8 bytes, and for each value the
# length of its key, the key padded to an 8-byte boundary, the value and its timestamp.
_USED, _VALUES = struct.Struct("i"), struct.Struct("dd")
_HEADER, _ALIGNMENT, _KEY_PARTS = 8, 8, 4
_READS = 5
_MODE = 0o600
_MOST_RECENT = "gauge_mostrecent"
_NAME = re.compile(r"(counter|histogram|summary|gauge_[a-z]+)_\d+\.db")
# A key, its value and its timestamp.
Row = tuple[str, float, float]
# The kind of the file, and a row.
Content = Sequence[tuple[str, str, float, float]] | None
ResultT = TypeVar("ResultT")
logger = structlog.get_logger(__name__)


class CorruptFile(ValueError):
    """A metrics file is corrupt, for instance because its worker died while writing it."""


@dataclass(frozen=True)
class Folded:
    """The merged content of dead workers; ``sources`` are merged files not yet deleted."""

    generation: int = 0
    sources: frozenset[str] = frozenset()
    content: Any = None


class Fold:
    """A file that holds the content of dead workers' files, each exactly once.

    It is replaced atomically, together with the names of the files merged into it, which are
    deleted afterwards. So nothing is counted twice if a process dies in between.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Folded:
        """Return the fold, an empty one if the file is missing or invalid.

        Raises:
            OSError: This process is out of file descriptors.

        """
        try:
            generation, sources, content = json.loads(self._path.read_bytes())
            return Folded(int(generation), frozenset(sources), content)
        except OSError as error:
            # The file may be intact, so it must not be taken for empty.
            if is_out_of_descriptors(error):
                raise
            return Folded()
        except (ValueError, TypeError):
            return Folded()

    def consistent(self, read: Callable[[Folded], ResultT]) -> ResultT:
        """Call ``read`` until the fold did not change meanwhile; return its result."""
        for _ in range(_READS):
            folded = self.read()
            with suppress(FileNotFoundError):
                result = read(folded)
                if self.read().generation == folded.generation:
                    return result
        # Workers are dying continually; one more read is right except for a few of them.
        return read(self.read())

    def add_dead(
        self,
        files: Callable[[], Sequence[Path]],
        merge: Callable[[Any, Sequence[Path]], Any],
    ) -> None:
        """Fold the files of dead workers; on a full disk they stay as they are."""
        with suppress(OSError):
            dead = [file for file in files() if is_dead(file)]
            if dead or self.read().sources:
                self.add(dead, merge)

    def add(self, files: Sequence[Path], merge: Callable[[Any, Sequence[Path]], Any]) -> None:
        """Fold the given files, unless another process is folding.

        Raises:
            OSError: The fold cannot be written, for instance on a full disk.

        """
        with self._locked() as is_locked:
            if not is_locked:
                return
            folded = self.read()
            # Another process may have died before it deleted them.
            self._delete_sources(folded)
            files = [file for file in files if file.exists()]
            if files:
                names = frozenset(file.name for file in files)
                content = merge(folded.content, files)
                folded = Folded(folded.generation + 1, names, content)
                self._write(folded)
                self._delete_sources(folded)

    def _delete_sources(self, folded: Folded) -> None:
        if folded.sources:
            for name in folded.sources:
                self._path.with_name(name).unlink(missing_ok=True)
            self._write(Folded(folded.generation + 1, frozenset(), folded.content))

    def _write(self, folded: Folded) -> None:
        state = [folded.generation, sorted(folded.sources), folded.content]
        replace_file(self._path, json.dumps(state), _MODE)

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, _MODE)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False
        finally:
            os.close(lock)


def files_in(directory: Path) -> list[Path]:
    """Return the sorted paths in a folder, none if it does not exist."""
    try:
        # glob would take a folder that cannot be opened for an empty one.
        return sorted(directory / name for name in os.listdir(directory))  # noqa: PTH208
    except FileNotFoundError:
        return []


def is_dead(file: Path) -> bool:
    """Return whether the process whose id is in a file's name has ended."""
    number = file.stem.rpartition("_")[2]
    return number.isdigit() and not psutil.pid_exists(int(number))


class FileRows(str):  # noqa: SLOT000  it has an attribute
    """The name of a metrics file, with its rows as an attribute."""

    rows: Sequence[Row]

    def __new__(cls, name: str, rows: Sequence[Row]) -> Self:
        file = super().__new__(cls, name)
        file.rows = rows
        return file


class MetricFiles:
    """The metrics files of all workers of a server, as prometheus_client writes them.

    ``on_corrupt`` is called once for each file that cannot be read. The file is skipped, and moved
    to ``corrupt.aside`` if its worker is dead.
    """

    def __init__(self, directory: Path, on_corrupt: Callable[[], None]) -> None:
        self._directory = directory
        self._on_corrupt = on_corrupt
        self._reported: set[str] = set()
        self._fold = Fold(directory / "folded.json")

    def read(self) -> list[FileRows]:
        """Fold, and return the rows of dead workers and of each live one."""
        self.fold()
        return self._fold.consistent(self._read)

    def fold(self) -> None:
        """Fold the files of dead workers; on a full disk they stay as they are."""
        self._fold.add_dead(self._files, self._merge)

    def _files(self) -> list[Path]:
        return [file for file in files_in(self._directory) if _NAME.fullmatch(file.name)]

    def _read(self, folded: Folded) -> list[FileRows]:
        rows: dict[str, list[Row]] = {}
        for kind, key, value, timestamp in folded.content or ():
            rows.setdefault(kind, []).append((key, value, timestamp))
        dead = [FileRows(f"{kind}_0.db", rows[kind]) for kind in rows]
        others = (file for file in self._files() if file.name not in folded.sources)
        return [*dead, *(FileRows(file.name, self._rows(file)) for file in others)]

    def _rows(self, file: Path) -> Sequence[Row]:
        """Return a file's rows, none if it cannot be read, which is reported once."""
        try:
            return read_rows(file.read_bytes())
        except CorruptFile as error:
            self._report(file, str(error))
            return ()
        except OSError as error:
            if isinstance(error, FileNotFoundError) or is_out_of_descriptors(error):
                raise
            self._report(file, error.strerror or "the file cannot be read")
            return ()

    def _report(self, file: Path, fault: str) -> None:
        dead = is_dead(file)
        if file.name not in self._reported:
            self._reported.add(file.name)
            self._on_corrupt()
            logger.warning("metrics_file_corrupt", file=str(file), fault=fault)
        if dead:
            self._reported.discard(file.name)
            with suppress(OSError):
                file.replace(self._directory / "corrupt.aside")

    def _merge(self, content: Content, files: Sequence[Path]) -> Content:
        merged = {(kind, key): (value, at) for kind, key, value, at in content or ()}
        for file in files:
            kind = file.stem.rpartition("_")[0]
            rows = self._rows(file)
            # A live gauge of a dead worker no longer counts.
            if not kind.startswith("gauge_live"):
                for key, value, at in rows:
                    merged[kind, key] = _added(kind, merged.get((kind, key)), (value, at))
        return [(kind, key, value, at) for (kind, key), (value, at) in merged.items()]


def _added(
    kind: str, total: tuple[float, float] | None, sample: tuple[float, float]
) -> tuple[float, float]:
    """Add a value with its timestamp to the total of its kind."""
    if total is None:
        return sample
    if kind == _MOST_RECENT:
        return max(total, sample, key=lambda candidate: candidate[1])
    return total[0] + sample[0], 0.0


def read_rows(content: bytes) -> list[Row]:
    """Return the rows of a metrics file.

    Raises:
        CorruptFile: The file is damaged.

    """
    if not content.strip(b"\0"):
        # The file is being created.
        return []
    if len(content) < _HEADER:
        raise CorruptFile("the header is missing")
    (used,) = _USED.unpack_from(content)
    if not _HEADER <= used <= len(content):
        raise CorruptFile("its length in use is invalid")
    rows, position = [], _HEADER
    while position < used:
        row, position = _read_row(content, position, used)
        rows.append(row)
    return rows


def _read_row(content: bytes, position: int, used: int) -> tuple[Row, int]:
    if position + _USED.size > used:
        raise CorruptFile("a value is cut off")
    (length,) = _USED.unpack_from(content, position)
    start = position + _USED.size
    values = start + length + _ALIGNMENT - (length + _USED.size) % _ALIGNMENT
    if length <= 0 or values + _VALUES.size > used:
        raise CorruptFile("a key's length is invalid")
    try:
        key = content[start : start + length].decode()
    except UnicodeDecodeError:
        raise CorruptFile("a key is not UTF-8") from None
    if not _is_key(key):
        raise CorruptFile("a key is not one of prometheus_client's")
    value, timestamp = _VALUES.unpack_from(content, values)
    return (key, value, timestamp), values + _VALUES.size


@lru_cache(maxsize=1 << 14)
def _is_key(key: str) -> bool:
    """Return whether a key is a JSON list: metric name, sample name, labels and help text."""
    try:
        parts = json.loads(key)
    except ValueError:
        return False
    if not isinstance(parts, list) or len(parts) != _KEY_PARTS:
        return False
    metric, sample, labels, text = parts
    if not isinstance(labels, dict):
        return False
    return all(isinstance(part, str) for part in (metric, sample, text, *labels.values()))


def server_directory(parent: Path) -> Path:
    """Return the folder in which the workers of the server of this process share their metrics.

    It is named by host and process. Folders of this host's servers that have ended are removed.
    """
    host = socket.gethostname()
    for other in parent.glob(f"{glob.escape(host)}.*"):
        if not psutil.pid_exists(int(other.suffix[1:])):
            shutil.rmtree(other, ignore_errors=True)
    return parent / f"{host}.{os.getpid()}"
