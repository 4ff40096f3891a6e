"""Where the workers of a host put what they have seen, until it fills a window.

A part is one file of rows, which appears whole; its name tells when it was written, by whom and of
how many rows, so that a window's size is known without a look inside. Parts stay until their window
has been judged: whoever is killed meanwhile, the next one finds them.
"""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kaiten import tags
from kaiten.records import PredictionRecord
from monitors.features import FEATURES, Columns, columns_of

TENANT = "tenant"
_SUFFIX = ".npy"
# Whose measures they are is nobody else's business.
_MODE = 0o600


@dataclass(frozen=True, order=True, slots=True)
class Source:
    """Whose answers: ``model`` is ``name:version``."""

    model: str
    arm: str

    @property
    def path(self) -> Path:
        """Where what is kept of it lies, below any folder."""
        return Path(*tags.split(self.model), self.arm)


@dataclass(frozen=True, slots=True)
class Part:
    """One file of rows; ``at`` in seconds since the epoch."""

    path: Path
    at: float
    rows: int

    def read(self) -> NDArray[np.void]:
        """Return the rows, whose fields are the features and the tenant."""
        found: NDArray[np.void] = np.load(self.path, allow_pickle=False)
        return found


class Spool:
    """The parts of all windows that are not full yet."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock
        self._written = 0

    def put(self, records: Sequence[PredictionRecord], tenant_of: Callable[[str], str]) -> None:
        """Write records, one part for each model and arm; ``tenant_of`` names a subject."""
        by_source: dict[Source, list[PredictionRecord]] = defaultdict(list)
        for record in records:
            by_source[Source(record.model, record.arm)].append(record)
        for source, own in by_source.items():
            self._write(source, _rows(own, [tenant_of(each.subject) for each in own]))

    def sources(self) -> list[Source]:
        """Return whose parts there are."""
        folders = {path.parent for path in self._folder.glob(f"*/*/*/*{_SUFFIX}")}
        return sorted(
            Source(f"{each.parent.parent.name}:{each.parent.name}", each.name) for each in folders
        )

    def parts(self, source: Source) -> list[Part]:
        """Return a source's parts, oldest first."""
        folder = self._folder / source.path
        return sorted(_named(folder.glob(f"*{_SUFFIX}")), key=lambda part: part.path.name)

    def forget(self, parts: Sequence[Part]) -> None:
        """Remove parts whose window has been judged."""
        for part in parts:
            part.path.unlink(missing_ok=True)

    def _write(self, source: Source, rows: NDArray[np.void]) -> None:
        folder = self._folder / source.path
        folder.mkdir(parents=True, exist_ok=True)
        self._written += 1
        name = f"{int(self._clock() * 1000):013d}-{os.getpid()}-{self._written}-{len(rows)}"
        partial = folder / f"{name}.partial"
        with os.fdopen(
            os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _MODE), "wb"
        ) as file:
            np.save(file, rows, allow_pickle=False)
        partial.rename(folder / f"{name}{_SUFFIX}")


def columns(parts: Sequence[NDArray[np.void]]) -> Columns:
    """Return the rows of several parts, in columns."""
    return {
        feature.name: np.concatenate([part[feature.name] for part in parts]) for feature in FEATURES
    }


def _rows(records: Sequence[PredictionRecord], tenants: Sequence[str]) -> NDArray[np.void]:
    found = {**columns_of(records), TENANT: np.array(tenants, dtype=str)}
    rows = np.empty(len(records), dtype=[(name, each.dtype) for name, each in found.items()])
    for name, values in found.items():
        rows[name] = values
    return rows


def _named(paths: Iterator[Path]) -> Iterator[Part]:
    for path in paths:
        at, _, _, rows = path.stem.split("-")
        yield Part(path, int(at) / 1000, int(rows))
