"""Which report drift is measured from."""

import hashlib
import json
from pathlib import Path

import pytest

from kaiten.events import BASELINE_FILE
from lifecycle.baseline import REPORT_FILE, baseline_folder, report_folder

CARD, OTHER = "c" * 64, "d" * 64


def report(reports: Path, at: str, *, passed: bool = True, card: str = CARD) -> Path:
    """Write a report as a validation does, with more in it than is read here."""
    checks = [{"name": "accuracy", "passed": True}, {"name": "macro F1", "passed": passed}]
    content = json.dumps({"tag": "ours:1.0.0", "card": card, "at": at, "checks": checks}).encode()
    folder = report_folder(reports, hashlib.sha256(content).hexdigest())
    folder.mkdir(parents=True)
    (folder / REPORT_FILE).write_bytes(content)
    (folder / BASELINE_FILE).write_bytes(b"profile")
    return folder


def test_without_a_report_there_is_none(tmp_path: Path) -> None:
    assert baseline_folder(tmp_path / "reports", CARD) is None
    (tmp_path / "promotions.json").write_text("[]")
    assert baseline_folder(tmp_path, CARD) is None


def test_newest_that_passed_counts(tmp_path: Path) -> None:
    # By when it was made, which the time zone is a part of.
    report(tmp_path, "2026-11-02T01:00:00+02:00")
    newest = report(tmp_path, "2026-11-02T00:00:00Z")
    report(tmp_path, "2026-10-30T00:00:00Z")
    report(tmp_path, "2026-12-01T00:00:00Z", passed=False)
    assert baseline_folder(tmp_path, CARD) == newest


def test_refused_ones_count_where_none_has_passed(tmp_path: Path) -> None:
    report(tmp_path, "2026-11-01T00:00:00Z", passed=False)
    newest = report(tmp_path, "2026-11-02T00:00:00Z", passed=False)
    assert baseline_folder(tmp_path, CARD) == newest


def test_report_on_other_bytes_does_not_count(tmp_path: Path) -> None:
    report(tmp_path, "2026-11-02T00:00:00Z", card=OTHER)
    assert baseline_folder(tmp_path, CARD) is None
    folder = report(tmp_path, "2026-11-01T00:00:00Z")
    assert baseline_folder(tmp_path, CARD) == folder


@pytest.mark.parametrize("name", [REPORT_FILE, BASELINE_FILE])
def test_report_that_lacks_a_file_does_not_count(name: str, tmp_path: Path) -> None:
    (report(tmp_path, "2026-11-02T00:00:00Z") / name).unlink()
    assert baseline_folder(tmp_path, CARD) is None


def test_report_that_was_changed_does_not_count(tmp_path: Path) -> None:
    file = report(tmp_path, "2026-11-02T00:00:00Z", passed=False) / REPORT_FILE
    file.write_text(file.read_text().replace("false", "true"))
    assert baseline_folder(tmp_path, CARD) is None


@pytest.mark.parametrize("content", [b"{}", b"no JSON", b'{"card": 1}'])
def test_what_is_no_report_does_not_count(content: bytes, tmp_path: Path) -> None:
    folder = report_folder(tmp_path, hashlib.sha256(content).hexdigest())
    folder.mkdir()
    (folder / REPORT_FILE).write_bytes(content)
    (folder / BASELINE_FILE).write_bytes(b"profile")
    assert baseline_folder(tmp_path, CARD) is None
