"""Archived windows of made-up answers."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from monitors.drift.archive.names import ArchivedProfile
from monitors.drift.spool import Source
from monitors.drift.whylogs_profiles import Profile
from tests.unit.monitors.drift.profiles import answers

SOURCE = Source("intent:1.0.0", "production")
START = datetime(2026, 11, 28, tzinfo=UTC)
ROWS = 1000


def windows(
    random: np.random.Generator, count: int, host: str = "host", first: int = 0
) -> list[tuple[ArchivedProfile, Profile]]:
    """Return windows of usual answers, an hour each."""
    return [window(random, first + place, host) for place in range(count)]


def window(
    random: np.random.Generator, place: int, host: str = "host", **changed: NDArray[np.float64]
) -> tuple[ArchivedProfile, Profile]:
    """Return a window, whose columns are usual but for those that are given."""
    start, end = START + place * timedelta(hours=1), START + (place + 1) * timedelta(hours=1)
    profile = ArchivedProfile(SOURCE, None, start, end, ROWS, host, f"{place}-17-1-{ROWS}")
    return profile, Profile.of(answers(random, ROWS, **changed), start)


def by_time(
    profiles: Iterable[tuple[ArchivedProfile, Profile]],
) -> list[tuple[ArchivedProfile, Profile]]:
    """Return windows as an archive lists them."""
    return sorted(profiles, key=lambda pair: pair[0].path.name)
