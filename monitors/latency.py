"""How long answers took, by route and over all workers: exact sums, and percentiles within 1 %.

The percentiles are those of DDSketch (Masson, Rim and Lee, VLDB 2019) over a fixed range: buckets
whose bounds grow by a constant factor, so that each value is within a relative error of what its
bucket stands for, and sketches are merged by adding them up. Each worker has a file of its own,
mapped into memory, beside its metrics: adding an answer changes a few numbers there without a
system call, and what is there outlives the worker, however it ends. Files of dead workers are
folded into one. Where the disk is full, a worker's times stay in its own memory.
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

from monitors.metrics_files import Fold, Folded, files_in

RELATIVE_ERROR = 0.01
# In seconds. What is quicker counts as the one, and what is slower as the other.
LEAST, MOST = 1e-5, 600.0
_INSTANT = 1e-9
_GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_PER_LOG = 1 / log(_GAMMA)
_FIRST, _LAST = ceil(log(LEAST) * _PER_LOG), ceil(log(MOST) * _PER_LOG)
_BUCKETS = _LAST - _FIRST + 1
# What each bucket stands for: no value in it is further off than the relative error.
_VALUES = 2 * _GAMMA ** np.arange(_FIRST, _LAST + 1) / (_GAMMA + 1)
_GOOD, _OTHER, _END = 200, 300, 600

# A file is float64 throughout: since when, by Unix time, and then a row a route: the sum, the
# least (0 where there is none) and the most, the buckets, and the other answers by status.
_SUM, _MIN, _MAX, _HEAD = range(4)
_STATUSES = _HEAD + _BUCKETS
_ROW = _STATUSES + _END - _OTHER
_BYTES = 8
_FOLDED = "answers-folded.json"
logger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Times:
    """How long a route took for its good answers (2xx), in seconds; None where there was none."""

    route: str
    row: NDArray[np.float64]

    @cached_property
    def count(self) -> int:
        """Of the good answers."""
        return int(self.row[_HEAD:_STATUSES].sum())

    @property
    def others(self) -> Mapping[int, int]:
        """How many answers had another status, by status."""
        counts = self.row[_STATUSES:]
        return {_OTHER + int(place): int(counts[place]) for place in np.flatnonzero(counts)}

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
        """Return the time that this share of the good answers, from 0 to 1, took at most.

        It is within the relative error of the answer at rank ``share * (count - 1)``, rounded down.
        """
        if not self.count:
            return None
        below = np.cumsum(self.row[_HEAD:_STATUSES])
        place = np.searchsorted(below, int(share * (self.count - 1)), side="right")
        return float(np.clip(_VALUES[place], self.row[_MIN], self.row[_MAX]))


class AnswerTimes:
    """Keeps the times of this worker's answers, and reads those of all.

    With a ``directory`` (PROMETHEUS_MULTIPROC_DIR) that is of all workers that share it; without
    one, of this process. One thread adds; any may read.
    """

    def __init__(self, routes: Sequence[str], directory: str | None = None) -> None:
        self._routes = routes
        self._rows = {route: 1 + place * _ROW for place, route in enumerate(routes)}
        size = _BYTES * (1 + len(routes) * _ROW)
        self._path: Path | None = None
        self._fold: Fold | None = None
        shared = mmap.mmap(-1, size)
        if directory is not None:
            self._fold = Fold(Path(directory, _FOLDED))
            self._path = Path(directory, f"answers_{os.getpid()}.times")
            try:
                shared = _mapped(self._path, size)
            except OSError as error:
                facts = {"file": str(self._path), "fault": error.strerror}
                logger.error("answer_times_in_memory", **facts)  # noqa: TRY400  it is no bug
        self._own = memoryview(shared).cast("d")
        self._own[0] = self._own[0] or time.time()
        self._fold_dead()

    def add(self, route: str, status: int, seconds: float) -> None:
        """Add an answer, by the status that the caller saw."""
        own, row = self._own, self._rows[route]
        if not _GOOD <= status < _OTHER:
            own[row + _STATUSES + min(max(status, _OTHER), _END - 1) - _OTHER] += 1
            return
        # 0 is no time yet.
        seconds = max(seconds, _INSTANT)
        own[row + _SUM] += seconds
        if not 0 < own[row + _MIN] <= seconds:
            own[row + _MIN] = seconds
        own[row + _MAX] = max(own[row + _MAX], seconds)
        # Last: who finds it counted finds the others as well.
        own[row + _HEAD + _bucket(seconds)] += 1

    def read(self) -> tuple[datetime, Sequence[Times]]:
        """Return since when answers are counted, and what each route took, over all workers."""
        self._fold_dead()
        merged = self._consistent()
        rows = merged[1:].reshape(-1, _ROW)
        found = [Times(route, row) for route, row in zip(self._routes, rows, strict=True)]
        return datetime.fromtimestamp(merged[0], UTC), found

    def _consistent(self) -> NDArray[np.float64]:
        if self._fold is None:
            return np.array(self._own)
        return self._fold.consistent(lambda folded: _merged([*self._workers(folded)]))

    def _workers(self, folded: Folded) -> Iterator[NDArray[np.float64]]:
        """Yield what each worker has kept, those that are gone as well."""
        yield np.array(self._own)
        yield from self._unfolded(folded.content)
        for path in self._files():
            if path != self._path and path.name not in folded.sources:
                yield from self._kept(path)

    def _files(self) -> Sequence[Path]:
        known = files_in(self._path.parent) if self._path else []
        return [each for each in known if fnmatch(each.name, "answers_*.times")]

    def _kept(self, path: Path) -> Iterator[NDArray[np.float64]]:
        content = path.read_bytes()
        # One that is being made is empty, or has no beginning.
        if len(content) == self._own.nbytes:
            kept = np.frombuffer(content)
            if kept[0] > 0:
                yield kept

    def _unfolded(self, content: object) -> Iterator[NDArray[np.float64]]:
        """Yield what is folded: how many numbers there are, and those that are not 0."""
        match content:
            case [int(size), list(places), list(numbers)] if size == len(self._own):
                kept = np.zeros(size)
                kept[places] = numbers
                yield kept

    def _fold_dead(self) -> None:
        """Fold what dead workers have left; where the disk is full, it stays as it is."""
        if self._fold is not None:
            self._fold.add_dead(self._files, self._merge)

    def _merge(self, content: object, files: Sequence[Path]) -> object:
        kept = [*self._unfolded(content)]
        for file in files:
            kept += self._kept(file)
        if not kept:
            return content
        merged = _merged(kept)
        places = np.flatnonzero(merged)
        return [len(merged), places.tolist(), merged[places].tolist()]


def _merged(workers: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return as one what several have kept."""
    stacked = np.stack(workers)
    rows = stacked[:, 1:].reshape(len(workers), -1, _ROW)
    merged: NDArray[np.float64] = stacked.sum(axis=0)
    merged[0] = stacked[:, 0].min()
    own = merged[1:].reshape(-1, _ROW)
    least = np.where(rows[..., _MIN] > 0, rows[..., _MIN], np.inf).min(axis=0)
    own[:, _MIN] = np.where(np.isfinite(least), least, 0)
    own[:, _MAX] = rows[..., _MAX].max(axis=0)
    return merged


def _bucket(seconds: float) -> int:
    if seconds <= LEAST:
        return 0
    return min(ceil(log(seconds) * _PER_LOG) - _FIRST, _BUCKETS - 1)


def _mapped(path: Path, size: int) -> mmap.mmap:
    """Return a file's content in memory; a worker whose id was another's goes on with its file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.stat().st_size != size:
        try:
            # Written, not left as a hole: a full disk is to fail here, and not at some request.
            path.write_bytes(bytes(size))
        except OSError:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            raise
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), size)
