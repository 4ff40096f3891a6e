"""The reports that a version carries, and which of them drift is measured from."""

from pathlib import Path

from pydantic import AwareDatetime, BaseModel

from kaiten.events import REFERENCE_FILE
from lifecycle.card import sha256

REPORT_FILE = "report.json"
_NAMED_BY = 16


class _Check(BaseModel):
    passed: bool


class _Told(BaseModel):
    """What is read of a report here; the rest needs packages that no server has."""

    card: str
    at: AwareDatetime
    checks: list[_Check]

    @property
    def rank(self) -> tuple[bool, AwareDatetime]:
        """Those that passed come before all others, and then the newest."""
        return all(check.passed for check in self.checks), self.at


def folder_of(reports: Path, digest: str) -> Path:
    """Return the folder of the report with this SHA-256, be it there or not."""
    return reports / digest[:_NAMED_BY]


def reference_of(reports: Path, card: str) -> Path | None:
    """Return the folder of the report that drift is measured from, None where there is none.

    That is the newest that has passed, else the newest, of those that are on these bytes (``card``
    is the SHA-256 of their card), as they were written, and with a profile. One on rows of later
    months that is refused, as the world has moved, must not become the measure of whether it has.
    No trail is asked: a bento has none.
    """
    told = {folder: _told(folder) for folder in reports.glob("*/")}
    ranked = [(each.rank, folder) for folder, each in told.items() if each and each.card == card]
    return max(ranked)[1] if ranked else None


def _told(folder: Path) -> _Told | None:
    """Return what a report says, None where it is not as it was written or has no profile."""
    file = folder / REPORT_FILE
    if not file.is_file() or not (folder / REFERENCE_FILE).is_file():
        return None
    if folder_of(folder.parent, sha256(file)) != folder:
        return None
    try:
        return _Told.model_validate_json(file.read_bytes())
    except ValueError:
        return None
