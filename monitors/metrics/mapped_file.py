"""A worker's metrics file that survives a full disk, for prometheus_client's multiprocess mode.

prometheus_client extends its files by holes. On a full disk the first write into a hole is a
SIGBUS, which ends the process. Here blocks are allocated before they are mapped into memory, and a
value that the disk has no room for stays in the memory of this process.
"""

import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import structlog
from prometheus_client import mmap_dict, multiprocess, values

from monitors.metrics.worker_files import CorruptFile, FileRows, read_rows

_FILE_BYTES = 1 << 16
# What a new value takes in a file beside its key, with padding.
_VALUE_BYTES = 4 + 16 + 8
logger = structlog.get_logger(__name__)


class _MappedFile(mmap_dict.MmapedDict):
    """prometheus_client's file of values, by key."""

    # By file name, the values that are in this process's memory only.
    in_memory: ClassVar[dict[str, dict[str, tuple[float, float]]]] = {}
    _is_reported: ClassVar[bool] = False

    def __init__(self, filename: str, read_mode: bool = False) -> None:  # noqa: FBT001, FBT002  as in the base class
        self._memory: dict[str, tuple[float, float]] = {}
        try:
            if not read_mode:
                _allocate(filename)
            super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]
        except OSError as error:
            self._f = self._m = None  # type: ignore[assignment]  # as the base class closes it
            self._fname, self._capacity, self._used = filename, 0, _FILE_BYTES
            self._positions: dict[str, int] = {}
            self._report(error)
        self.in_memory[filename] = self._memory

    def _init_value(self, key: str) -> None:
        if self._has_room(len(key.encode()) + _VALUE_BYTES):
            super()._init_value(key)  # type: ignore[no-untyped-call]
        else:
            self._memory[key] = (0.0, 0.0)

    def _has_room(self, size: int) -> bool:
        """Extend the file if necessary; return whether ``size`` bytes more fit."""
        try:
            while self._used + size > self._capacity:
                if self._capacity == 0:
                    return False
                capacity = 2 * self._capacity
                _write_zeros(self._f.fileno(), self._capacity, capacity)
                self._m = mmap.mmap(self._f.fileno(), capacity)
                self._capacity = capacity
        except OSError as error:
            self._report(error)
            return False
        return True

    def _report(self, error: OSError) -> None:
        if not _MappedFile._is_reported:
            _MappedFile._is_reported = True
            # prometheus_client holds its lock here, and a dropped log line would wait for it.
            fields = {"file": str(self._fname), "fault": error.strerror or str(error)}
            threading.Thread(target=_log_in_memory, kwargs=fields, daemon=True).start()

    def read_value(self, key: str) -> tuple[float, float]:
        """Return a value and its timestamp; a new key is added."""
        self._add_missing(key)
        if key in self._memory:
            return self._memory[key]
        value: tuple[float, float] = super().read_value(key)  # type: ignore[no-untyped-call]
        return value

    def write_value(self, key: str, value: float, timestamp: float) -> None:
        """Set a value; a new key is added."""
        self._add_missing(key)
        if key in self._memory:
            self._memory[key] = (value, timestamp)
        else:
            super().write_value(key, value, timestamp)  # type: ignore[no-untyped-call]

    def _add_missing(self, key: str) -> None:
        if key not in self._positions and key not in self._memory:
            self._init_value(key)

    def close(self) -> None:
        """Close the file after a fork."""
        self.in_memory.pop(str(self._fname), None)
        super().close()  # type: ignore[no-untyped-call]

    @staticmethod
    def read_all_values_from_file(filename: str) -> Iterator[tuple[str, float, float, int]]:
        """Yield the values of a file, which a FileRows has read before."""
        rows = (
            filename.rows
            if isinstance(filename, FileRows)
            else read_rows(Path(filename).read_bytes())
        )
        return ((key, value, timestamp, 0) for key, value, timestamp in rows)


def rows_in_memory() -> Sequence[FileRows]:
    """Return the rows of this process that its disk had no room for, by file."""
    return [
        FileRows(Path(name).name, [(key, *value) for key, value in [*memory.items()]])
        for name, memory in [*_MappedFile.in_memory.items()]
    ]


def _allocate(filename: str) -> None:
    """Create a metrics file without holes, or take over that of an earlier process of this id."""
    descriptor = os.open(filename, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size:
            try:
                read_rows(Path(filename).read_bytes())
            except CorruptFile:
                os.ftruncate(descriptor, 0)
            size = os.fstat(descriptor).st_size
        _write_zeros(descriptor, size, max(size, _FILE_BYTES))
    except OSError:
        # A file that is left behind has holes, and later processes would use it.
        Path(filename).unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _write_zeros(descriptor: int, start: int, end: int) -> None:
    """Allocate blocks by writing: not every file system can allocate without a write."""
    while start < end:
        start += os.pwrite(descriptor, bytes(end - start), start)


def _log_in_memory(**fields: str) -> None:
    logger.error("metrics_in_memory", **fields)


# Both modules look the class up by its name when they need it.
values.MmapedDict = _MappedFile  # type: ignore[attr-defined]
multiprocess.MmapedDict = _MappedFile  # type: ignore[attr-defined]
