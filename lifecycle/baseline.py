"""The reports that a version carries, and which of them is the baseline for drift."""

from pathlib import Path

from pydantic import AwareDatetime, BaseModel

from kaiten.events import BASELINE_FILE
from lifecycle.card import sha256

REPORT_FILE = "report.json"
_FOLDER_NAME_CHARS = 16


class _CheckSummary(BaseModel):
    passed: bool


class _ReportSummary(BaseModel):
    """The fields of a report that are read here; the others need packages that no server has."""

    card: str
    at: AwareDatetime
    checks: list[_CheckSummary]

    @property
    def rank(self) -> tuple[bool, AwareDatetime]:
        """Reports that passed rank above all others, and then newer ones."""
        return all(check.passed for check in self.checks), self.at


def report_folder(reports: Path, digest: str) -> Path:
    """Return the folder of the report with this SHA-256, which need not exist."""
    return reports / digest[:_FOLDER_NAME_CHARS]


def baseline_folder(reports: Path, card: str) -> Path | None:
    """Return the folder of the report that drift is measured against, None if there is none.

    Candidates are the unchanged reports with a profile about these bytes (``card`` is the SHA-256
    of the card). The newest that passed is chosen, or else the newest: a report on later months
    that was refused because the data has drifted must not become the baseline. The audit log is not
    read, because a bento has none.
    """
    summaries = {folder: _read_summary(folder) for folder in reports.glob("*/")}
    ranked = [
        (summary.rank, folder)
        for folder, summary in summaries.items()
        if summary and summary.card == card
    ]
    return max(ranked)[1] if ranked else None


def _read_summary(folder: Path) -> _ReportSummary | None:
    """Read a report; None if it was changed or has no profile."""
    file = folder / REPORT_FILE
    if not file.is_file() or not (folder / BASELINE_FILE).is_file():
        return None
    if report_folder(folder.parent, sha256(file)) != folder:
        return None
    try:
        return _ReportSummary.model_validate_json(file.read_bytes())
    except ValueError:
        return None
