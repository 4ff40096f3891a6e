"""The names of profiles in the archive; they sort by time, and hold everything but the measures.

So an archive can be searched without reading its files. A profile is
NAME/VERSION/ARM/[subjects/PSEUDONYM/]START_END_ROWS_HOST_WINDOW.bin, with instants in UTC.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath

from monitors.drift.spool import Source
from monitors.drift.windows import EndedWindow

SUFFIX = ".bin"
_SUBJECTS = "subjects"
_INSTANT = "%Y%m%dT%H%M%S%fZ"
_NAME = re.compile(r"(\d{8}T\d{9}Z)_(\d{8}T\d{9}Z)_(\d+)_([^_]+)_([^_]+)\.bin")
_NOT_IN_HOSTS = re.compile(r"[^A-Za-z0-9.-]")


def folder_of(source: Source, pseudonym: str | None) -> PurePosixPath:
    """Return the folder of a source's profiles, or that of one of its subjects."""
    folder = PurePosixPath(source.path)
    return folder if pseudonym is None else folder / _SUBJECTS / pseudonym


@dataclass(frozen=True, slots=True)
class ArchivedProfile:
    """A profile in the archive; ``pseudonym`` is its subject's, None for all answers."""

    source: Source
    pseudonym: str | None
    started_at: datetime
    ended_at: datetime
    rows: int
    host: str
    window: str

    @classmethod
    def of(cls, window: EndedWindow, pseudonym: str | None, host: str) -> "ArchivedProfile":
        """Return the profile of a window; the same for the same window."""
        safe_host = _NOT_IN_HOSTS.sub("-", host) or "-"
        start, end = window.started_at, window.ended_at
        return cls(window.source, pseudonym, start, end, window.rows, safe_host, window.id)

    @classmethod
    def parse(cls, source: Source, pseudonym: str | None, name: str) -> "ArchivedProfile | None":
        """Return the profile of a file name; None for the names of other files."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        start, end, rows, host, window = match.groups()
        instants = _parse_instant(start), _parse_instant(end)
        return cls(source, pseudonym, *instants, int(rows), host, window)

    @property
    def path(self) -> PurePosixPath:
        """Its path in the archive."""
        span = f"{_format_instant(self.started_at)}_{_format_instant(self.ended_at)}"
        name = f"{span}_{self.rows}_{self.host}_{self.window}{SUFFIX}"
        return folder_of(self.source, self.pseudonym) / name


def _format_instant(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y%m%dT%H%M%S}{at.microsecond // 1000:03d}Z"


def _parse_instant(text: str) -> datetime:
    return datetime.strptime(text, _INSTANT).replace(tzinfo=UTC)
