"""The reports that a version carries: which is the latest, and which the baseline for drift."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import AwareDatetime, BaseModel

from kaiten.events import BASELINE_FILE
from lifecycle.card import sha256

REPORT_FILE = "report.json"
_FOLDER_NAME_CHARS = 16


class _CheckSummary(BaseModel):
    passed: bool


class _AveragesSummary(BaseModel):
    f1: float


class _MeasuresSummary(BaseModel):
    rows: int
    accuracy: float
    macro: _AveragesSummary
    calibration_error: float


class _CostSummary(BaseModel):
    device: str
    latency_p50_ms: float


class ReportSummary(BaseModel):
    """The fields of a report that are read here; the others need packages that no server has."""

    card: str
    at: AwareDatetime
    checks: list[_CheckSummary]

    @property
    def passed(self) -> bool:
        """Whether all checks passed."""
        return all(check.passed for check in self.checks)


class MeasuredReport(ReportSummary):
    """A report with the measures that versions are compared by."""

    measures: _MeasuresSummary
    cost: _CostSummary

    @property
    def figures(self) -> dict[str, str]:
        """The measures by which versions are compared, as text by name."""
        return {
            "verdict": "passed" if self.passed else "refused",
            "rows": str(self.measures.rows),
            "accuracy": f"{self.measures.accuracy:.4f}",
            "macro F1": f"{self.measures.macro.f1:.4f}",
            "calibration error": f"{self.measures.calibration_error:.4f}",
            "p50 of one text": f"{self.cost.latency_p50_ms:.1f} ms on {self.cost.device}",
        }


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
    ranked = [(summary.passed, summary.at, folder) for folder, summary in _summaries(reports, card)]
    return max(ranked)[-1] if ranked else None


def latest_report(reports: Path, card: str) -> MeasuredReport | None:
    """Return the newest unchanged report about these bytes, None if there is none."""
    ranked = [(summary.at, folder) for folder, summary in _summaries(reports, card)]
    if not ranked:
        return None
    try:
        return MeasuredReport.model_validate_json((max(ranked)[1] / REPORT_FILE).read_bytes())
    except ValueError:
        # An older Kaiten wrote it, without some of these measures.
        return None


def _summaries(reports: Path, card: str) -> Iterator[tuple[Path, ReportSummary]]:
    for folder in reports.glob("*/"):
        summary = _read_summary(folder)
        if summary is not None and summary.card == card:
            yield folder, summary


def _read_summary(folder: Path) -> ReportSummary | None:
    """Read a report; None if it was changed or has no profile."""
    file = folder / REPORT_FILE
    if not file.is_file() or not (folder / BASELINE_FILE).is_file():
        return None
    if report_folder(folder.parent, sha256(file)) != folder:
        return None
    try:
        return ReportSummary.model_validate_json(file.read_bytes())
    except ValueError:
        return None
