"""Latency of answers by route, over all workers: exact sums, and percentiles within 1 %.

The percentiles are those of DDSketch (Masson, Rim and Lee, VLDB 2019) over a fixed range. Bucket
bounds grow by a constant factor, so each value is within a relative error of its bucket's value.
Sketches are merged by addition. Prometheus' histogram of the same answers cannot replace them: its
14 buckets give percentiles within a factor of two or more, and neither a minimum nor a maximum.

Each worker maps a file of its own into memory, beside its metrics. Adding an answer changes a few
numbers there without a system call, and they outlive the worker, however it ends. Files of dead
workers are folded into one. If the disk is full, a worker's numbers stay in its own memory.
"""

import mmap
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import cached_property
from math import ceil, log
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from monitors.metrics.worker_files import Fold, Folded, files_in

RELATIVE_ERROR = 0.01
# In seconds. Quicker and slower answers count as these.
MIN_SECONDS, MAX_SECONDS = 1e-5, 600.0
_INSTANT = 1e-9
_GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_PER_LOG = 1 / log(_GAMMA)
_FIRST, _LAST = ceil(log(MIN_SECONDS) * _PER_LOG), ceil(log(MAX_SECONDS) * _PER_LOG)
_BUCKETS = _LAST - _FIRST + 1
# The value of each bucket: no number in it is further off than the relative error.
_VALUES = 2 * _GAMMA ** np.arange(_FIRST, _LAST + 1) / (_GAMMA + 1)
_OK, _OTHER, _END = 200, 300, 600

# A file is float64 throughout: the Unix time of its start, and then a row for each route: the sum,
# the minimum (0 without answers), the maximum, the buckets, and the other answers by status.
_SUM, _MIN, _MAX, _HEAD = range(4)
_STATUSES = _HEAD + _BUCKETS
_ROW = _STATUSES + _END - _OTHER
_BYTES = 8
_FOLDED = "answers-folded.json"
logger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class RouteLatency:
    """The times of a route's successful answers (2xx), in seconds; None without any."""

    route: str
    row: NDArray[np.float64]

    @cached_property
    def count(self) -> int:
        """The number of successful answers."""
        return int(self.row[_HEAD:_STATUSES].sum())

    @property
    def others(self) -> Mapping[int, int]:
        """The number of other answers, by status."""
        counts = self.row[_STATUSES:]
        return {_OTHER + int(index): int(counts[index]) for index in np.flatnonzero(counts)}

    @property
    def mean(self) -> float | None:
        return float(self.row[_SUM]) / self.count if self.count else None

    @property
    def least(self) -> float | None:
        return float(self.row[_MIN]) if self.count else None

    @property
    def most(self) -> float | None:
        return float(self.row[_MAX]) if self.count else None

    def quantile(self, share: float) -> float | None:
        """Return the time within which this share of the successful answers was given.

        It is within the relative error of the answer at rank ``share * (count - 1)``, rounded down.
        """
        if not self.count:
            return None
        below = np.cumsum(self.row[_HEAD:_STATUSES])
        bucket = np.searchsorted(below, int(share * (self.count - 1)), side="right")
        return float(np.clip(_VALUES[bucket], self.row[_MIN], self.row[_MAX]))


class LatencyStats:
    """Records the times of this worker's answers, and reads those of all workers.

    With a ``directory`` (PROMETHEUS_MULTIPROC_DIR) all workers that share it count; without one,
    this process only. One thread adds; any may read.
    """

    def __init__(self, routes: Sequence[str], directory: str | None = None) -> None:
        self._routes = routes
        self._rows = {route: 1 + index * _ROW for index, route in enumerate(routes)}
        size = _BYTES * (1 + len(routes) * _ROW)
        self._path: Path | None = None
        self._fold: Fold | None = None
        memory = mmap.mmap(-1, size)
        if directory is not None:
            self._fold = Fold(Path(directory, _FOLDED))
            self._path = Path(directory, f"answers_{os.getpid()}.times")
            try:
                memory = _map_file(self._path, size)
            except OSError as error:
                fields = {"file": str(self._path), "fault": error.strerror}
                logger.error("answer_times_in_memory", **fields)  # noqa: TRY400  not a bug
        self._numbers = memoryview(memory).cast("d")
        self._numbers[0] = self._numbers[0] or time.time()
        self._fold_dead()

    def add(self, route: str, status: int, seconds: float) -> None:
        """Add an answer, by the status that the caller saw."""
        numbers, row = self._numbers, self._rows[route]
        if not _OK <= status < _OTHER:
            numbers[row + _STATUSES + min(max(status, _OTHER), _END - 1) - _OTHER] += 1
            return
        # 0 stands for no answer.
        seconds = max(seconds, _INSTANT)
        numbers[row + _SUM] += seconds
        if not 0 < numbers[row + _MIN] <= seconds:
            numbers[row + _MIN] = seconds
        numbers[row + _MAX] = max(numbers[row + _MAX], seconds)
        # Last: a reader that sees the answer counted sees its other numbers too.
        numbers[row + _HEAD + _bucket(seconds)] += 1

    def read(self) -> tuple[datetime, Sequence[RouteLatency]]:
        """Return since when answers are counted, and each route's latency over all workers."""
        self._fold_dead()
        merged = self._read_consistently()
        rows = zip(self._routes, merged[1:].reshape(-1, _ROW), strict=True)
        latencies = [RouteLatency(route, row) for route, row in rows]
        return datetime.fromtimestamp(merged[0], UTC), latencies

    def _read_consistently(self) -> NDArray[np.float64]:
        if self._fold is None:
            return np.array(self._numbers)
        return self._fold.consistent(lambda folded: _merge([*self._read_workers(folded)]))

    def _read_workers(self, folded: Folded) -> Iterator[NDArray[np.float64]]:
        """Yield the numbers of each worker, and those of the dead ones."""
        yield np.array(self._numbers)
        yield from self._unfold(folded.content)
        for path in self._files():
            if path != self._path and path.name not in folded.sources:
                yield from self._read_file(path)

    def _files(self) -> Sequence[Path]:
        paths = files_in(self._path.parent) if self._path else []
        return [path for path in paths if fnmatch(path.name, "answers_*.times")]

    def _read_file(self, path: Path) -> Iterator[NDArray[np.float64]]:
        content = path.read_bytes()
        # A file that is being created is empty, or has no start time.
        if len(content) == self._numbers.nbytes:
            numbers = np.frombuffer(content)
            if numbers[0] > 0:
                yield numbers

    def _unfold(self, content: object) -> Iterator[NDArray[np.float64]]:
        """Yield a fold: its size, and the indices and values of the numbers other than 0."""
        match content:
            case [int(size), list(indices), list(values)] if size == len(self._numbers):
                numbers = np.zeros(size)
                numbers[indices] = values
                yield numbers

    def _fold_dead(self) -> None:
        """Fold the files of dead workers; if the disk is full, they stay."""
        if self._fold is not None:
            self._fold.add_dead(self._files, self._merge_files)

    def _merge_files(self, content: object, files: Sequence[Path]) -> object:
        parts = [*self._unfold(content)]
        for file in files:
            parts += self._read_file(file)
        if not parts:
            return content
        merged = _merge(parts)
        indices = np.flatnonzero(merged)
        return [len(merged), indices.tolist(), merged[indices].tolist()]


def _merge(workers: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    stacked = np.stack(workers)
    rows = stacked[:, 1:].reshape(len(workers), -1, _ROW)
    merged: NDArray[np.float64] = stacked.sum(axis=0)
    merged[0] = stacked[:, 0].min()
    merged_rows = merged[1:].reshape(-1, _ROW)
    minima = np.where(rows[..., _MIN] > 0, rows[..., _MIN], np.inf).min(axis=0)
    merged_rows[:, _MIN] = np.where(np.isfinite(minima), minima, 0)
    merged_rows[:, _MAX] = rows[..., _MAX].max(axis=0)
    return merged


def _bucket(seconds: float) -> int:
    if seconds <= MIN_SECONDS:
        return 0
    return min(ceil(log(seconds) * _PER_LOG) - _FIRST, _BUCKETS - 1)


def _map_file(path: Path, size: int) -> mmap.mmap:
    """Return a file's content in memory; a worker with a reused process id continues its file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.stat().st_size != size:
        try:
            # Written in full, not left as a hole: a full disk must fail here, not at a request.
            path.write_bytes(bytes(size))
        except OSError:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            raise
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), size)
