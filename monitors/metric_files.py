"""Files in which the workers of a server keep what they count, and what is left of dead workers.

Each worker has files of its own, named ``KIND_PID.SUFFIX``. Those of dead workers are folded into
one file, so that deaths cost no room. A reader takes no lock: it reads the fold, then all files
that the fold does not hold yet, and starts again if the fold has changed meanwhile.
"""

import fcntl
import json
import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil
import structlog

from kaiten.files import is_out_of_descriptors, replace

# prometheus_client's format: the bytes in use, padding to 8, and then for each value the length of
# its key, the key padded so that what follows is aligned to 8, the value and its timestamp.
_USED, _VALUES = struct.Struct("i"), struct.Struct("dd")
_HEADER, _ALIGNMENT, _KEY_PARTS = 8, 8, 4
_READS = 5
_MODE = 0o600
_MOST_RECENT = "gauge_mostrecent"
_NAME = re.compile(r"(counter|histogram|summary|gauge_[a-z]+)_\d+\.db")
# A key, its value and when it was set.
Row = tuple[str, float, float]
Content = Sequence[tuple[str, str, float, float]] | None
ResultT = TypeVar("ResultT")
logger = structlog.get_logger(__name__)


class TornFile(ValueError):
    """A file whose worker died while writing it, or that something else has damaged."""


@dataclass(frozen=True)
class Folded:
    """What dead workers have counted; ``sources`` are files it holds that may still be there."""

    generation: int = 0
    sources: frozenset[str] = frozenset()
    content: Any = None


class Fold:
    """One file with what the files of dead workers held, each of them exactly once.

    It is replaced whole, together with the names of the files that went into it, which are deleted
    afterwards: a process that dies in between leaves nothing that would be counted twice.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Folded:
        """Return what is folded; nothing where the file is missing or cannot be understood."""
        try:
            generation, sources, content = json.loads(self._path.read_bytes())
            return Folded(int(generation), frozenset(sources), content)
        except OSError as error:
            # A fault of this process and not of the file that it opens.
            if is_out_of_descriptors(error):
                raise
            return Folded()
        except (ValueError, TypeError):
            return Folded()

    def consistent(self, read: Callable[[Folded], ResultT]) -> ResultT:
        """Return what ``read`` makes of the fold and of the files that it does not hold."""
        for _ in range(_READS):
            folded = self.read()
            with suppress(FileNotFoundError):
                result = read(folded)
                if self.read().generation == folded.generation:
                    return result
        # Workers die by the second; what is read once more is right to within a few of them.
        return read(self.read())

    def add_dead(
        self,
        files: Callable[[], Sequence[Path]],
        merge: Callable[[Any, Sequence[Path]], Any],
    ) -> None:
        """Fold those files whose workers are dead; on a full disk, they stay as they are."""
        with suppress(OSError):
            dead = [file for file in files() if is_dead(file)]
            if dead or self.read().sources:
                self.add(dead, merge)

    def add(self, files: Sequence[Path], merge: Callable[[Any, Sequence[Path]], Any]) -> None:
        """Fold files of dead workers, unless another process does so; OSError on a full disk."""
        with self._locked() as locked:
            if not locked:
                return
            folded = self.read()
            # Of a process that died after it had folded them.
            self._forget(folded)
            files = [file for file in files if file.exists()]
            if files:
                names = frozenset(file.name for file in files)
                content = merge(folded.content, files)
                folded = Folded(folded.generation + 1, names, content)
                self._write(folded)
                self._forget(folded)

    def _forget(self, folded: Folded) -> None:
        if folded.sources:
            for name in folded.sources:
                self._path.with_name(name).unlink(missing_ok=True)
            self._write(Folded(folded.generation + 1, frozenset(), folded.content))

    def _write(self, folded: Folded) -> None:
        state = [folded.generation, sorted(folded.sources), folded.content]
        replace(self._path, json.dumps(state), _MODE)

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
    """Return what a folder holds, in order; nothing where it is gone."""
    try:
        # Not glob, which takes a folder that cannot be opened for an empty one.
        return sorted(directory / name for name in os.listdir(directory))  # noqa: PTH208
    except FileNotFoundError:
        return []


def is_dead(file: Path) -> bool:
    """Tell whether the process that a file is named after is gone."""
    number = file.stem.rpartition("_")[2]
    return number.isdigit() and not psutil.pid_exists(int(number))


class FileRows(str):  # noqa: SLOT000  it has an attribute
    """The name of a metrics file, with what was read from it."""

    rows: Sequence[Row]

    def __new__(cls, name: str, rows: Sequence[Row]) -> Self:
        file = super().__new__(cls, name)
        file.rows = rows
        return file


class MetricFiles:
    """The metrics files of all workers of a server, as prometheus_client writes them.

    ``torn`` is called for each file that cannot be read; it is left out, and moved to
    ``torn.aside`` if its worker is dead.
    """

    def __init__(self, directory: Path, torn: Callable[[], None]) -> None:
        self._directory = directory
        self._report_torn = torn
        self._torn: set[str] = set()
        self._fold = Fold(directory / "folded.json")

    def read(self) -> list[FileRows]:
        """Return what each worker has counted, and what dead ones had."""
        self.fold()
        return self._fold.consistent(self._read)

    def fold(self) -> None:
        """Fold what dead workers have left; where the disk is full, it stays as it is."""
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
        """Return a file's rows; none, reported once, where it cannot be read."""
        try:
            return read_rows(file.read_bytes())
        except TornFile as error:
            self._note(file, str(error))
            return ()
        except OSError as error:
            if isinstance(error, FileNotFoundError) or is_out_of_descriptors(error):
                raise
            self._note(file, error.strerror or "it cannot be read")
            return ()

    def _note(self, file: Path, fault: str) -> None:
        dead = is_dead(file)
        if file.name not in self._torn:
            self._torn.add(file.name)
            self._report_torn()
            logger.warning("metrics_file_torn", file=str(file), fault=fault)
        if dead:
            self._torn.discard(file.name)
            with suppress(OSError):
                file.replace(self._directory / "torn.aside")

    def _merge(self, content: Content, files: Sequence[Path]) -> Content:
        merged = {(kind, key): (value, at) for kind, key, value, at in content or ()}
        for file in files:
            kind = file.stem.rpartition("_")[0]
            rows = self._rows(file)
            # What a dead worker holds now is nothing.
            if not kind.startswith("gauge_live"):
                for key, value, at in rows:
                    merged[kind, key] = _added(kind, merged.get((kind, key)), (value, at))
        return [(kind, key, value, at) for (kind, key), (value, at) in merged.items()]


def _added(
    kind: str, kept: tuple[float, float] | None, found: tuple[float, float]
) -> tuple[float, float]:
    if kept is None:
        return found
    if kind == _MOST_RECENT:
        return max(kept, found, key=lambda each: each[1])
    return kept[0] + found[0], 0.0


def read_rows(content: bytes) -> list[Row]:
    """Return the rows of a metrics file; TornFile where it is not whole."""
    if not content.strip(b"\0"):
        # It is being made.
        return []
    if len(content) < _HEADER:
        raise TornFile("it has no header")
    (used,) = _USED.unpack_from(content)
    if not _HEADER <= used <= len(content):
        raise TornFile("its length in use is none")
    rows, position = [], _HEADER
    while position < used:
        row, position = _read_row(content, position, used)
        rows.append(row)
    return rows


def _read_row(content: bytes, position: int, used: int) -> tuple[Row, int]:
    if position + _USED.size > used:
        raise TornFile("a value is cut off")
    (length,) = _USED.unpack_from(content, position)
    start = position + _USED.size
    values = start + length + _ALIGNMENT - (length + _USED.size) % _ALIGNMENT
    if length <= 0 or values + _VALUES.size > used:
        raise TornFile("a key's length is none")
    try:
        key = content[start : start + length].decode()
    except UnicodeDecodeError:
        raise TornFile("a key is not UTF-8") from None
    if not _is_key(key):
        raise TornFile("a key is none of prometheus_client's")
    value, timestamp = _VALUES.unpack_from(content, values)
    return (key, value, timestamp), values + _VALUES.size


@lru_cache(maxsize=1 << 14)
def _is_key(key: str) -> bool:
    """Tell whether it is a JSON list of a metric's name, a sample's name, labels and a help."""
    try:
        parts = json.loads(key)
    except ValueError:
        return False
    if not isinstance(parts, list) or len(parts) != _KEY_PARTS:
        return False
    metric, sample, labels, text = parts
    if not isinstance(labels, dict):
        return False
    return all(isinstance(each, str) for each in (metric, sample, text, *labels.values()))
