"""Profiles by whylogs: the only module that imports it.

Its optional dependencies are hidden from it, so that it takes 20 MB of memory instead of 180.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from monitors.drift.features import Columns

# whylogs 1.6.4 uses a name that numpy 2 has removed; everything else in it works.
if not hasattr(np, "unicode_"):
    np.unicode_ = np.str_  # type: ignore[attr-defined]

# whylogs imports these if they are installed, and replaces them otherwise.
_OPTIONAL = ("pandas", "sklearn", "scipy", "PIL", "pyarrow")


@contextmanager
def _hide(names: Sequence[str]) -> Iterator[None]:
    """Make imports of these modules fail, unless they are imported already."""
    hidden = [name for name in names if name not in sys.modules]
    # None marks a module as missing.
    sys.modules |= dict.fromkeys(hidden)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


with _hide(_OPTIONAL):
    from whylogs.core import ColumnProfile, ColumnSchema, DatasetProfileView

_COUNTS, _NUMBERS, _CLASSES = "counts", "distribution", "frequent_items"


class Profile:
    """Sketches of each column of some answers; profiles can be merged."""

    def __init__(self, view: DatasetProfileView) -> None:
        self._view = view

    @classmethod
    def of(cls, columns: Columns, started_at: datetime | None = None) -> "Profile":
        """Return the profile of columns of one length, without their NaN values."""
        at = started_at or datetime.now(UTC)
        profiles = {name: _profile(name, values) for name, values in columns.items()}
        views = {name: profile.view() for name, profile in profiles.items() if profile is not None}
        return cls(DatasetProfileView(columns=views, dataset_timestamp=at, creation_timestamp=at))

    @classmethod
    def read(cls, content: bytes) -> "Profile":
        """Return a serialized profile."""
        return cls(DatasetProfileView.deserialize(content))

    def serialize(self) -> bytes:
        """Return the profile in whylogs' format."""
        content: bytes = self._view.serialize()
        return content

    def merged(self, other: "Profile") -> "Profile":
        """Return the profile of the answers of both."""
        return Profile(self._view.merge(other._view))  # noqa: SLF001  the same class

    @property
    def started_at(self) -> datetime:
        """When its first answer was given."""
        at: datetime = self._view.dataset_timestamp
        return at

    def count(self, column: str) -> int:
        """Return how many answers have the column."""
        metric = self._metric(column, _COUNTS)
        return int(metric.n.value) if metric else 0

    def quantiles(self, column: str, ranks: Sequence[float]) -> NDArray[np.float64]:
        """Return the numbers at these ranks, from 0 to 1; NaN for an empty column."""
        metric = self._metric(column, _NUMBERS)
        if metric is None or metric.kll.value.is_empty():
            return np.full(len(ranks), np.nan)
        return np.array(metric.kll.value.get_quantiles([*ranks]))

    def below(self, column: str, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share of a column's numbers below each of these ascending points."""
        sketch = self._metric(column, _NUMBERS).kll.value
        # The last value is the share of all numbers.
        return np.array(sketch.get_cdf(points.tolist())[:-1])

    def classes(self, column: str) -> dict[str, int]:
        """Return the count of each class; above 700 classes, those of the rarest are estimates."""
        metric = self._metric(column, _CLASSES)
        return {item.value: round(item.est) for item in metric.strings} if metric else {}

    def _metric(self, column: str, name: str):  # type: ignore[no-untyped-def]  # noqa: ANN202  whylogs has no types
        profile = self._view.get_column(column)
        return profile.get_metric(name) if profile is not None else None


def _profile(name: str, values: NDArray[np.float64] | NDArray[np.str_]) -> ColumnProfile | None:
    is_number = values.dtype.kind == "f"
    finite = values[np.isfinite(values.astype(np.float64))] if is_number else values
    if not len(finite):
        return None
    column = ColumnProfile(name, ColumnSchema(dtype=float if is_number else str), cache_size=0)
    column.track_column(finite)
    return column
