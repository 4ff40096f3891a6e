"""Profiles by whylogs: the one module that imports it.

With what it can do without hidden from it, it costs a process 20 MB instead of 180.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from monitors.drift.features import Columns

# whylogs 1.6.4 names a type that numpy 2 no longer has; nothing else in it minds.
if not hasattr(np, "unicode_"):
    np.unicode_ = np.str_  # type: ignore[attr-defined]

# It imports them where they are, and has stand-ins where they are not.
_OPTIONAL = ("pandas", "sklearn", "scipy", "PIL", "pyarrow")


@contextmanager
def _hidden(names: Sequence[str]) -> Iterator[None]:
    """Have imports of what is not imported yet fail."""
    hidden = [name for name in names if name not in sys.modules]
    # None tells an import that there is no such module.
    sys.modules |= dict.fromkeys(hidden)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


with _hidden(_OPTIONAL):
    from whylogs.core import ColumnProfile, ColumnSchema, DatasetProfileView

_COUNTS, _NUMBERS, _CLASSES = "counts", "distribution", "frequent_items"


class Profile:
    """What is known of some answers: sketches of each column, which can be merged."""

    def __init__(self, view: DatasetProfileView) -> None:
        self._view = view

    @classmethod
    def of(cls, columns: Columns, started_at: datetime | None = None) -> "Profile":
        """Return the profile of columns of one length; what is NaN in them is left out."""
        at = started_at or datetime.now(UTC)
        found = {name: _tracked(name, values) for name, values in columns.items()}
        kept = {name: each.view() for name, each in found.items() if each is not None}
        return cls(DatasetProfileView(columns=kept, dataset_timestamp=at, creation_timestamp=at))

    @classmethod
    def read(cls, content: bytes) -> "Profile":
        """Return a profile as it was written."""
        return cls(DatasetProfileView.deserialize(content))

    def written(self) -> bytes:
        """Return the profile as whylogs reads it."""
        content: bytes = self._view.serialize()
        return content

    def merged(self, other: "Profile") -> "Profile":
        """Return the profile of the answers of both."""
        return Profile(self._view.merge(other._view))  # noqa: SLF001  one of its kind

    @property
    def started_at(self) -> datetime:
        """When its answers began."""
        at: datetime = self._view.dataset_timestamp
        return at

    def count(self, column: str) -> int:
        """Return how many answers have the column."""
        found = self._metric(column, _COUNTS)
        return int(found.n.value) if found else 0

    def quantiles(self, column: str, ranks: Sequence[float]) -> NDArray[np.float64]:
        """Return the numbers at these ranks, from 0 to 1; NaN where there are none."""
        found = self._metric(column, _NUMBERS)
        if found is None or found.kll.value.is_empty():
            return np.full(len(ranks), np.nan)
        return np.array(found.kll.value.get_quantiles([*ranks]))

    def below(self, column: str, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share of a column's numbers under each of these ascending points."""
        sketch = self._metric(column, _NUMBERS).kll.value
        # The last one is the share of all.
        return np.array(sketch.get_cdf(points.tolist())[:-1])

    def classes(self, column: str) -> dict[str, int]:
        """Return how often each class occurs; of over 700 classes, the rarest are estimates."""
        found = self._metric(column, _CLASSES)
        return {each.value: round(each.est) for each in found.strings} if found else {}

    def _metric(self, column: str, name: str):  # type: ignore[no-untyped-def]  # noqa: ANN202  whylogs has no types
        found = self._view.get_column(column)
        return found.get_metric(name) if found is not None else None


def _tracked(name: str, values: NDArray[np.float64] | NDArray[np.str_]) -> ColumnProfile | None:
    numbers = values.dtype.kind == "f"
    kept = values[np.isfinite(values.astype(np.float64))] if numbers else values
    if not len(kept):
        return None
    column = ColumnProfile(name, ColumnSchema(dtype=float if numbers else str), cache_size=0)
    column.track_column(kept)
    return column
