from datetime import UTC, datetime

import pytest

from monitors.feedback.accuracy_estimate import Calibration
from monitors.feedback.database import Database
from monitors.feedback.windows import QualityWindows, ReportCalibration
from tests.unit.monitors.feedback.house import put, row

# As often right as it is sure.
HONEST = Calibration(
    rows=1000,
    confidence=[0, 1],
    accuracy=[0, 1],
    knots=[0, 1],
    covariance=[[0.0001, 0], [0, 0.0001]],
    error=0.01,
    windows=5,
    window_rows=200,
)


def windows_of(database: Database, rows: int = 10) -> QualityWindows:
    return QualityWindows(
        database, {"intent:1.0.0": ReportCalibration("report", HONEST), "intent:2.0.0": None}, rows
    )


def test_nothing_is_known_of_nobody(database: Database) -> None:
    assert windows_of(database).read() == []


def test_each_version_and_arm_is_measured_alone(database: Database) -> None:
    put(
        database,
        row(truth="billing"),
        row(truth="delivery"),
        row(arm="shadow", truth="billing"),
        row(version="2.0.0", truth="delivery"),
        row(model="another"),
    )
    qualities = {
        (quality.model, quality.version, quality.arm): quality
        for quality in windows_of(database).read()
    }
    assert list(qualities) == [
        ("another", "1.0.0", "production"),
        ("intent", "1.0.0", "production"),
        ("intent", "1.0.0", "shadow"),
        ("intent", "2.0.0", "production"),
    ]
    accuracies = [quality.measures and quality.measures.accuracy for quality in qualities.values()]
    assert accuracies == [None, 0.5, 1.0, 0.0]
    has_estimate = [quality.estimate is not None for quality in qualities.values()]
    assert has_estimate == [False, True, True, False]
    assert [quality.report for quality in qualities.values()] == [None, "report", "report", None]
    unserved_reason, _, _, uncalibrated_reason = (quality.reason for quality in qualities.values())
    assert "does not serve" in str(unserved_reason)
    assert "no calibration; run `kaiten validate`" in str(uncalibrated_reason)


def test_measures_are_of_the_latest_labelled_answers(database: Database) -> None:
    put(
        database,
        row(truth="delivery", answered_at=1.0),
        *(row(truth="billing", answered_at=10.0 + number) for number in range(4)),
        *(row(answered_at=100.0) for _ in range(20)),
    )
    (quality,) = windows_of(database, rows=4).read()
    assert quality.measures is not None
    assert (quality.measures.labelled, quality.measures.accuracy) == (4, 1.0)
    assert quality.measures.first_at == datetime.fromtimestamp(10, UTC)
    assert quality.measures.last_at == datetime.fromtimestamp(13, UTC)


def test_estimate_is_of_the_latest_answers_whether_labelled_or_not(database: Database) -> None:
    put(
        database,
        *(row(confidence=0.1) for _ in range(10)),
        *(row(confidence=0.9, truth="billing") for _ in range(2)),
        *(row(confidence=0.7) for _ in range(8)),
    )
    (quality,) = windows_of(database).read()
    assert quality.estimate is not None
    assert quality.estimate.accuracy == pytest.approx(0.74)
    assert quality.estimate.low < 0.74 < quality.estimate.high
    assert (quality.estimate.rows, quality.estimate.error) == (10, 0.01)
    assert (quality.estimate.error_rows, quality.estimate.error_windows) == (200, 5)
    # Of the two that are labelled: expected 0.9, and both were right.
    assert quality.measures is not None
    assert quality.measures.observed_error == pytest.approx(0.1)


def test_mark_changes_with_what_comes(database: Database) -> None:
    windows = windows_of(database)
    before = windows.mark()
    assert windows.mark() == before
    put(database, row())
    assert windows.mark() != before
