"""Measures the quality of the latest answers of each version, from the database alone.

So every worker and host reports the same measures. Only hosts that serve a version, and so have its
calibration, estimate its accuracy.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import Connection, Row, Select, func, select, tuple_

from kaiten.feedback import Measures, VersionQuality
from monitors.feedback.accuracy_estimate import Calibration
from monitors.feedback.database import Database
from monitors.feedback.measures import scores
from monitors.feedback.tables import feedback, predictions

_NOT_HERE = (
    "this host does not serve the version, so it has no calibration of it; ask one that does"
)
_NOT_CALIBRATED = "the version's validation report holds no calibration; run `kaiten validate`"


class ReportCalibration(NamedTuple):
    """A calibration, and the name of the validation report that holds it."""

    name: str
    calibration: Calibration


# By the tag of each model served here; None if it has no calibration.
Calibrations = Mapping[str, ReportCalibration | None]


class ServedVersion(NamedTuple):
    """A version in one arm."""

    model: str
    version: str
    arm: str


class QualityWindows:
    """Measures over the latest ``rows`` answers of each version."""

    def __init__(self, database: Database, calibrations: Calibrations, rows: int) -> None:
        self._database = database
        self._calibrations = calibrations
        self._rows = rows

    def read(self) -> list[VersionQuality]:
        """Return the quality of each version that has answered.

        Raises:
            DatabaseUnavailable: The database cannot be reached.

        """
        with self._database.reading() as connection:
            return [self._measure(connection, version) for version in _served_versions(connection)]

    def mark(self) -> tuple[int, float]:
        """Return a value that changes with each prediction and each label.

        Raises:
            DatabaseUnavailable: The database cannot be reached.

        """
        with self._database.reading() as connection:
            last_id = connection.scalar(select(func.max(predictions.c.id))) or 0
            last_label = connection.scalar(select(func.max(feedback.c.received_at))) or 0
        return last_id, last_label

    def _measure(self, connection: Connection, version: ServedVersion) -> VersionQuality:
        tag = f"{version.model}:{version.version}"
        report = self._calibrations.get(tag)
        calibration = report and report.calibration
        labelled = connection.execute(self._latest(version).where(predictions.c.truth.is_not(None)))
        measures = _measures(labelled.all(), calibration)
        estimate = None
        if calibration is not None:
            latest = self._latest(version).with_only_columns(predictions.c.confidence)
            confidences = connection.scalars(latest).all()
            estimate = calibration.estimate(confidences) if confidences else None
        if report is not None:
            return VersionQuality(*version, measures, estimate, report=report.name)
        reason = _NOT_CALIBRATED if tag in self._calibrations else _NOT_HERE
        return VersionQuality(*version, measures, estimate, reason=reason)

    def _latest(self, version: ServedVersion) -> Select[Any]:
        columns = predictions.c
        statement = select(columns.label, columns.truth, columns.confidence, columns.answered_at)
        conditions = (columns[name] == value for name, value in version._asdict().items())
        return statement.where(*conditions).order_by(columns.id.desc()).limit(self._rows)


def _measures(rows: Sequence[Row[Any]], calibration: Calibration | None) -> Measures | None:
    if not rows:
        return None
    predicted, truth, confidence, at = (
        np.asarray(column).tolist() for column in zip(*rows, strict=True)
    )
    result = scores(predicted, truth)
    error = None
    if calibration is not None:
        error = abs(calibration.estimate(confidence).accuracy - result.accuracy)
    return Measures(
        labelled=len(rows),
        first_at=datetime.fromtimestamp(min(at), UTC),
        last_at=datetime.fromtimestamp(max(at), UTC),
        accuracy=result.accuracy,
        precision=result.precision,
        recall=result.recall,
        f1=result.f1,
        observed_error=error,
    )


def _served_versions(connection: Connection) -> Iterator[ServedVersion]:
    """Yield each version that has answered, sorted, by one index lookup each (loose index scan).

    DISTINCT would read the whole index.
    """
    columns = (predictions.c.model, predictions.c.version, predictions.c.arm)
    following = select(*columns).order_by(*columns).limit(1)
    row = connection.execute(following).one_or_none()
    while row is not None:
        yield ServedVersion(*row)
        after = following.where(tuple_(*columns) > tuple_(*row))
        row = connection.execute(after).one_or_none()
