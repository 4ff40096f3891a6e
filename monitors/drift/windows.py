"""Windows of answers: which parts of the spool make one, and when it has ended."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from kaiten.settings.models import DriftSettings
from monitors.drift.spool import Part, Source, Spool


@dataclass(frozen=True, slots=True)
class Window:
    """Parts that make a window, oldest first, and are no other's."""

    source: Source
    parts: Sequence[Part]

    @property
    def id(self) -> str:
        """What tells it from every other: the folder that holds its parts."""
        return self.parts[0].path.parent.name

    @property
    def rows(self) -> int:
        """How many answers are in it."""
        return sum(part.rows for part in self.parts)

    @property
    def started_at(self) -> datetime:
        """When its first part was written."""
        return datetime.fromtimestamp(self.parts[0].at, UTC)

    @property
    def ended_at(self) -> datetime:
        """When its last part was written."""
        return datetime.fromtimestamp(self.parts[-1].at, UTC)


def ended(
    spool: Spool, source: Source, settings: DriftSettings, clock: Callable[[], float] = time.time
) -> Iterator[Window]:
    """Yield each window of a source that has ended, and claim it.

    It has by its rows, or by its age if it has enough of them. What was claimed before and not
    forgotten comes first. One process at a time asks for a source's.
    """
    yield from (Window(source, parts) for parts in spool.claimed(source) if parts)
    gathered: list[Part] = []
    rows = 0
    for part in spool.parts(source):
        gathered.append(part)
        rows += part.rows
        if rows >= settings.window_rows:
            yield Window(source, spool.claim(source, gathered))
            gathered, rows = [], 0
    if rows >= settings.min_rows and clock() - gathered[0].at >= settings.window_s:
        yield Window(source, spool.claim(source, gathered))
