"""Tracking records with whylogs: the one module that imports it.

It brings pandas and takes a second to import, so the profiler imports it in its own thread.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

# whylogs 1.6.4 names a type that numpy 2 no longer has; nothing else in it minds.
if not hasattr(np, "unicode_"):
    np.unicode_ = np.str_  # type: ignore[attr-defined]

import pandas as pd
from whylogs.core import DatasetProfile

from kaiten.records import PredictionRecord

_COLUMNS = ("text_length", "token_count", "label", "confidence")


class ModelProfile:
    """The profile of one model version, over one window."""

    def __init__(self) -> None:
        self.started_at = datetime.now(UTC)
        self._profile = DatasetProfile(dataset_timestamp=self.started_at)

    def track(self, records: Sequence[PredictionRecord]) -> None:
        """Add records, in columns: a frame costs 5 us a row, a dict 185 us."""
        rows = [[getattr(record, column) for column in _COLUMNS] for record in records]
        self._profile.track(pd.DataFrame(rows, columns=list(_COLUMNS)))

    def write(self, path: Path) -> None:
        """Write the profile as whylogs reads it."""
        path.write_bytes(self._profile.view().serialize())
