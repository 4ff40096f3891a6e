"""How long answers took, by route and over all workers: exact sums, and percentiles within 1 %.

The percentiles are those of DDSketch (Masson, Rim and Lee, VLDB 2019) over a fixed range: buckets
whose bounds grow by a constant factor, so that each value is within a relative error of what its
bucket stands for, and sketches are merged by adding them up. Each worker has a file of its own,
mapped into memory, beside its metrics: adding an answer changes a few numbers there without a
system call, and what is there outlives the worker, however it ends.
"""

import mmap
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from math import ceil, log
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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
        self._path = Path(directory, f"answers_{os.getpid()}.times") if directory else None
        size = _BYTES * (1 + len(routes) * _ROW)
        shared = mmap.mmap(-1, size) if self._path is None else _mapped(self._path, size)
        self._own = memoryview(shared).cast("d")
        self._own[0] = self._own[0] or time.time()

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
        workers = np.stack([*self._workers()])
        since, rows = workers[:, 0].min(), workers[:, 1:].reshape(len(workers), -1, _ROW)
        least = np.where(rows[..., _MIN] > 0, rows[..., _MIN], np.inf).min(axis=0)
        most = rows[..., _MAX].max(axis=0)
        merged = rows.sum(axis=0)
        merged[:, _MIN], merged[:, _MAX] = least, most
        found = [Times(route, row) for route, row in zip(self._routes, merged, strict=True)]
        return datetime.fromtimestamp(since, UTC), found

    def _workers(self) -> Iterator[NDArray[np.float64]]:
        """Yield what each worker has kept, those that are gone as well."""
        yield np.array(self._own)
        for path in self._path.parent.glob("answers_*.times") if self._path else ():
            content = path.read_bytes()
            # One that is being made is empty, or has no beginning.
            if path != self._path and len(content) == self._own.nbytes:
                kept = np.frombuffer(content)
                if kept[0] > 0:
                    yield kept


def _bucket(seconds: float) -> int:
    if seconds <= LEAST:
        return 0
    return min(ceil(log(seconds) * _PER_LOG) - _FIRST, _BUCKETS - 1)


def _mapped(path: Path, size: int) -> mmap.mmap:
    """Return a file's content in memory; a worker whose id was another's goes on with its file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.stat().st_size != size:
        # Written, not left as a hole: a full disk is to fail here, and not at some request.
        path.write_bytes(bytes(size))
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), size)
