"""Windows of answers: which parts of the spool form one, and when it has ended."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from kaiten.settings.models import DriftSettings
from monitors.drift.spool import Part, Source, Spool


@dataclass(frozen=True, slots=True)
class EndedWindow:
    """The parts that form a window, oldest first; each part is in one window only."""

    source: Source
    parts: Sequence[Part]

    @property
    def id(self) -> str:
        """The name of the folder that holds its parts, unique on its host."""
        return self.parts[0].path.parent.name

    @property
    def rows(self) -> int:
        """The number of its answers."""
        return sum(part.rows for part in self.parts)

    @property
    def started_at(self) -> datetime:
        """When its first part was written."""
        return datetime.fromtimestamp(self.parts[0].at, UTC)

    @property
    def ended_at(self) -> datetime:
        """When its last part was written."""
        return datetime.fromtimestamp(self.parts[-1].at, UTC)


def claim_ended(
    spool: Spool, source: Source, settings: DriftSettings, clock: Callable[[], float] = time.time
) -> Iterator[EndedWindow]:
    """Yield each window of a source that has ended, and claim it.

    A window ends by its number of rows, or by its age if it has enough rows. Windows that were
    claimed before and are still there come first. Only one process at a time may claim the windows
    of a source.
    """
    yield from (EndedWindow(source, parts) for parts in spool.claimed(source) if parts)
    gathered: list[Part] = []
    rows = 0
    for part in spool.parts(source):
        gathered.append(part)
        rows += part.rows
        if rows >= settings.window_rows:
            yield EndedWindow(source, spool.claim(source, gathered))
            gathered, rows = [], 0
    if rows >= settings.min_rows and clock() - gathered[0].at >= settings.window_s:
        yield EndedWindow(source, spool.claim(source, gathered))
