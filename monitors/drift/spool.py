"""Where the workers of a host put what they have seen, until it fills a window.

A part is one file of rows, which appears whole; its name tells when it was written, by whom and of
how many rows, so that a window's size is known without a look inside. The parts of a window that
has ended are moved into a folder of its own, which stays until it was judged: whoever is killed
meanwhile, the next one finds it, and no row counts twice.
"""

import io
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from kaiten import model_tags
from kaiten.files import replace
from monitors.drift.features import FEATURES, Columns

logger = structlog.get_logger(__name__)
TENANT = "tenant"
_SUFFIX = ".npy"
_NAME = re.compile(r"(\d{13})-\d+-\d+-(\d+)")
# Whose measures they are is nobody else's business.
_MODE = 0o600
# Where nobody closes windows, a disk is not to be filled: an hour and more of parts.
_MAX_PARTS = 5000


@dataclass(frozen=True, order=True, slots=True)
class Source:
    """Whose answers: ``model`` is ``name:version``."""

    model: str
    arm: str

    @property
    def path(self) -> Path:
        """Where what is kept of it lies, below any folder."""
        return Path(*model_tags.split(self.model), self.arm)


@dataclass(frozen=True, slots=True)
class Part:
    """One file of rows; ``at`` in seconds since the epoch."""

    path: Path
    at: float
    rows: int


class Spool:
    """The parts of all windows that have not been judged yet."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock
        self._written = 0

    def put(self, source: Source, columns: Columns, tenants: Sequence[str]) -> bool:
        """Write measured answers as one part; return whether there was room.

        Raises:
            OSError: The part cannot be written.

        """
        folder = self._folder / source.path
        folder.mkdir(parents=True, exist_ok=True)
        if sum(1 for _ in folder.iterdir()) >= _MAX_PARTS:
            return False
        self._write(folder, _rows({**columns, TENANT: np.array(tenants, dtype=str)}))
        return True

    def arms(self, model: str) -> list[Source]:
        """Return the sources of a model that there may be parts of."""
        folder = self._folder.joinpath(*model_tags.split(model))
        return sorted(Source(model, each.name) for each in folder.glob("*/"))

    def parts(self, source: Source) -> list[Part]:
        """Return a source's parts of no window yet, oldest first."""
        return _named((self._folder / source.path).glob(f"*{_SUFFIX}"))

    def claimed(self, source: Source) -> list[list[Part]]:
        """Return the parts of each window that has ended and was not forgotten, oldest first."""
        folders = sorted((self._folder / source.path).glob("*/"))
        return [_named(folder.glob(f"*{_SUFFIX}")) for folder in folders]

    def claim(self, source: Source, parts: Sequence[Part]) -> list[Part]:
        """Move parts into a folder of their own, and return them where they are now."""
        folder = self._folder / source.path / parts[0].path.stem
        folder.mkdir(exist_ok=True)
        return [
            Part(part.path.rename(folder / part.path.name), part.at, part.rows) for part in parts
        ]

    def forget(self, parts: Sequence[Part]) -> None:
        """Remove the parts of a window that was claimed, with their folder."""
        shutil.rmtree(parts[0].path.parent)

    def _write(self, folder: Path, rows: NDArray[np.void]) -> None:
        self._written += 1
        name = f"{int(self._clock() * 1000):013d}-{os.getpid()}-{self._written}-{len(rows)}"
        content = io.BytesIO()
        np.save(content, rows, allow_pickle=False)
        replace(folder / f"{name}{_SUFFIX}", content.getvalue(), _MODE)


def read(parts: Sequence[Part]) -> list[NDArray[np.void]]:
    """Return the rows of each part, whose fields are the features and the tenant.

    One that holds something else, as a power cut or an older version may leave it, is left out.
    """
    wanted = {feature.name for feature in FEATURES} | {TENANT}
    found = []
    for part in parts:
        try:
            rows = np.load(part.path, allow_pickle=False)
            whole = set(rows.dtype.names or ()) >= wanted
        except (ValueError, EOFError):
            whole = False
        if whole:
            found.append(rows)
        else:
            logger.warning("part_unreadable", part=part.path.name, rows=part.rows)
    return found


def columns(parts: Sequence[NDArray[np.void]]) -> Columns:
    """Return the rows of several parts, in columns."""
    return {
        feature.name: np.concatenate([part[feature.name] for part in parts]) for feature in FEATURES
    }


def _rows(columns: Columns) -> NDArray[np.void]:
    dtype = [(name, values.dtype) for name, values in columns.items()]
    rows = np.empty(len(columns[TENANT]), dtype)
    for name, values in columns.items():
        rows[name] = values
    return rows


def _named(paths: Iterator[Path]) -> list[Part]:
    """Return the parts among files, oldest first; what has another kind of name is none."""
    named = ((path, _NAME.fullmatch(path.stem)) for path in paths)
    parts = [Part(path, int(m[1]) / 1000, int(m[2])) for path, m in named if m]
    return sorted(parts, key=lambda part: part.path.name)
