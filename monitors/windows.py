"""Windows of answers: which parts of the spool make one, and when it has ended."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from kaiten.sections import Drift
from monitors.spool import Part, Source, Spool


@dataclass(frozen=True, slots=True)
class Window:
    """Parts that make a window, oldest first; its id is that of its first part."""

    source: Source
    parts: Sequence[Part]

    @property
    def id(self) -> str:
        """What tells it from every other."""
        return self.parts[0].path.stem

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
    spool: Spool, settings: Drift, clock: Callable[[], float] = time.time
) -> Iterator[Window]:
    """Yield each window that has ended: by its rows, or by its age if it has enough of them."""
    for source in spool.sources():
        gathered: list[Part] = []
        for part in spool.parts(source):
            gathered.append(part)
            if sum(each.rows for each in gathered) >= settings.window_rows:
                yield Window(source, gathered)
                gathered = []
        window = Window(source, gathered)
        if window.rows >= settings.min_rows and clock() - gathered[0].at >= settings.window_s:
            yield window
