"""What a profile in the archive is named: all but what was measured, sorted by time.

So an archive is looked through without a file being read.
NAME/VERSION/ARM/[tenants/PSEUDONYM/]START_END_ROWS_HOST_WINDOW.bin, instants in UTC.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath

from monitors.drift.spool import Source
from monitors.drift.windows import Window

SUFFIX = ".bin"
_TENANTS = "tenants"
_INSTANT = "%Y%m%dT%H%M%S%fZ"
_NAME = re.compile(r"(\d{8}T\d{9}Z)_(\d{8}T\d{9}Z)_(\d+)_([^_]+)_([^_]+)\.bin")
_NOT_OF_A_HOST = re.compile(r"[^A-Za-z0-9.-]")


def folder_of(source: Source, tenant: str | None) -> PurePosixPath:
    """Return where the profiles of a version and arm are, or those of one of its tenants."""
    own = PurePosixPath(source.path)
    return own if tenant is None else own / _TENANTS / tenant


@dataclass(frozen=True, slots=True)
class Kept:
    """A profile in the archive; ``tenant`` is a pseudonym, None for the answers to all."""

    source: Source
    tenant: str | None
    started_at: datetime
    ended_at: datetime
    rows: int
    host: str
    window: str

    @classmethod
    def of(cls, window: Window, tenant: str | None, host: str) -> "Kept":
        """Return what the profile of a window is kept as: the same, however often it is put."""
        named = _NOT_OF_A_HOST.sub("-", host) or "-"
        start, end = window.started_at, window.ended_at
        return cls(window.source, tenant, start, end, window.rows, named, window.id)

    @classmethod
    def named(cls, source: Source, tenant: str | None, name: str) -> "Kept | None":
        """Return what a file's name tells; None for one that is no profile's."""
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        start, end, rows, host, window = found.groups()
        return cls(source, tenant, _read(start), _read(end), int(rows), host, window)

    @property
    def path(self) -> PurePosixPath:
        """Where it is in the archive."""
        span = f"{_written(self.started_at)}_{_written(self.ended_at)}"
        name = f"{span}_{self.rows}_{self.host}_{self.window}{SUFFIX}"
        return folder_of(self.source, self.tenant) / name


def _written(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y%m%dT%H%M%S}{at.microsecond // 1000:03d}Z"


def _read(text: str) -> datetime:
    return datetime.strptime(text, _INSTANT).replace(tzinfo=UTC)
