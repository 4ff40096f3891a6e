"""Windows to be kept, whose parts are of no matter."""

from pathlib import Path

from monitors.drift.spool import Part, Source
from monitors.drift.windows import EndedWindow

SOURCE = Source("intent:1.0.0", "production")
STARTED = 1_790_000_000.123


def window(at: float = 0, source: Source = SOURCE, rows: int = 1000) -> EndedWindow:
    """Return a window that began so many seconds after the first, and took a minute."""
    first = STARTED + at
    folder = Path(f"{int(first * 1000)}-17-1-{rows}")
    begins = Part(folder / f"{folder}.npy", first, rows - 1)
    ends = Part(folder / f"{int(first * 1000) + 60_000}-18-1-1.npy", first + 60, 1)
    return EndedWindow(source, [begins, ends])
