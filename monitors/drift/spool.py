"""The spool: a host's workers write measured answers into it until they fill a window.

A part is one file of rows, which appears whole. Its name holds the time, the process and the number
of rows, so the size of a window is known without reading it. The parts of an ended window are moved
into a folder of their own, which stays until the window is judged: if its worker is killed, the
next one finds it, and no row counts twice.
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
from kaiten.files import replace_file
from monitors.drift.features import FEATURES, Columns

logger = structlog.get_logger(__name__)
PSEUDONYM = "pseudonym"
_SUFFIX = ".npy"
_NAME = re.compile(r"(\d{13})-\d+-\d+-(\d+)")
# The measures of callers' texts are readable by their owner only.
_MODE = 0o600
# Bounds the disk if no process closes windows: over an hour of parts.
_MAX_PARTS = 5000


@dataclass(frozen=True, order=True, slots=True)
class Source:
    """The version and arm that answered; ``model`` is a model tag."""

    model: str
    arm: str

    @property
    def path(self) -> Path:
        """Its folder, relative to any folder that is divided by source."""
        return Path(*model_tags.split(self.model), self.arm)


@dataclass(frozen=True, slots=True)
class Part:
    """One file of rows; ``at`` in seconds since the epoch."""

    path: Path
    at: float
    rows: int


class Spool:
    """The parts of all windows that have not been judged."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock
        self._written = 0

    def put(self, source: Source, columns: Columns, pseudonyms: Sequence[str]) -> bool:
        """Write measured answers as one part; return whether there was room.

        Raises:
            OSError: The part cannot be written.

        """
        folder = self._folder / source.path
        folder.mkdir(parents=True, exist_ok=True)
        if sum(1 for _ in folder.iterdir()) >= _MAX_PARTS:
            return False
        rows = _to_rows({**columns, PSEUDONYM: np.array(pseudonyms, dtype=str)})
        self._written += 1
        name = f"{int(self._clock() * 1000):013d}-{os.getpid()}-{self._written}-{len(rows)}"
        content = io.BytesIO()
        np.save(content, rows, allow_pickle=False)
        replace_file(folder / f"{name}{_SUFFIX}", content.getvalue(), _MODE)
        return True

    def sources(self, model: str) -> list[Source]:
        """Return the sources of a model that may have parts."""
        folder = self._folder.joinpath(*model_tags.split(model))
        return sorted(Source(model, path.name) for path in folder.glob("*/"))

    def parts(self, source: Source) -> list[Part]:
        """Return the parts of a source that are in no window yet, oldest first."""
        return _parse_names((self._folder / source.path).glob(f"*{_SUFFIX}"))

    def claimed(self, source: Source) -> list[list[Part]]:
        """Return the parts of each claimed window, oldest first."""
        folders = sorted((self._folder / source.path).glob("*/"))
        return [_parse_names(folder.glob(f"*{_SUFFIX}")) for folder in folders]

    def claim(self, source: Source, parts: Sequence[Part]) -> list[Part]:
        """Move parts into a folder of their own; return them with their new paths."""
        folder = self._folder / source.path / parts[0].path.stem
        folder.mkdir(exist_ok=True)
        return [
            Part(part.path.rename(folder / part.path.name), part.at, part.rows) for part in parts
        ]

    def remove(self, parts: Sequence[Part]) -> None:
        """Remove the parts of a claimed window, with their folder."""
        shutil.rmtree(parts[0].path.parent)


def read(parts: Sequence[Part]) -> list[NDArray[np.void]]:
    """Return the rows of each part, whose fields are the features and the pseudonym.

    A part with other content, such as one left by a power cut or an older version, is left out.
    """
    fields = {feature.name for feature in FEATURES} | {PSEUDONYM}
    arrays = []
    for part in parts:
        try:
            rows = np.load(part.path, allow_pickle=False)
            is_whole = set(rows.dtype.names or ()) >= fields
        except (ValueError, EOFError):
            is_whole = False
        if is_whole:
            arrays.append(rows)
        else:
            logger.warning("part_unreadable", part=part.path.name, rows=part.rows)
    return arrays


def concatenate(parts: Sequence[NDArray[np.void]]) -> Columns:
    """Return the rows of several parts, in columns."""
    return {
        feature.name: np.concatenate([part[feature.name] for part in parts]) for feature in FEATURES
    }


def _to_rows(columns: Columns) -> NDArray[np.void]:
    dtype = [(name, values.dtype) for name, values in columns.items()]
    rows = np.empty(len(columns[PSEUDONYM]), dtype)
    for name, values in columns.items():
        rows[name] = values
    return rows


def _parse_names(paths: Iterator[Path]) -> list[Part]:
    """Return the parts among files, oldest first; files with other names are ignored."""
    matches = ((path, _NAME.fullmatch(path.stem)) for path in paths)
    parts = [Part(path, int(m[1]) / 1000, int(m[2])) for path, m in matches if m]
    return sorted(parts, key=lambda part: part.path.name)
