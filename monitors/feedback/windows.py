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

_NOT_HERE = "the host that was asked does not serve the version, and has no calibration of it"
_NOT_CALIBRATED = "the version's validation report holds no calibration; run kaiten validate"


class Reference(NamedTuple):
    """A calibration, and the name of the validation report that holds it."""

    name: str
    calibration: Calibration


# By the ``name:version`` of each version served here; None if it has no calibration.
References = Mapping[str, Reference | None]


class ServedVersion(NamedTuple):
    """A version in one arm."""

    model: str
    version: str
    arm: str


class Windows:
    """Measures over the latest ``rows`` answers of each version."""

    def __init__(self, database: Database, references: References, rows: int) -> None:
        self._database = database
        self._references = references
        self._rows = rows

    def read(self) -> list[VersionQuality]:
        """Return the quality of each version that has answered.

        Raises:
            DatabaseUnavailable: The database cannot be reached.

        """
        with self._database.reading() as connection:
            return [self._quality(connection, each) for each in _served_versions(connection)]

    def mark(self) -> tuple[int, float]:
        """Return a value that changes with each prediction and each label.

        Raises:
            DatabaseUnavailable: The database cannot be reached.

        """
        with self._database.reading() as connection:
            last_id = connection.scalar(select(func.max(predictions.c.id))) or 0
            last_label = connection.scalar(select(func.max(feedback.c.received_at))) or 0
        return last_id, last_label

    def _quality(self, connection: Connection, of: ServedVersion) -> VersionQuality:
        tag = f"{of.model}:{of.version}"
        reference = self._references.get(tag)
        calibration = reference and reference.calibration
        labelled = connection.execute(self._latest(of).where(predictions.c.truth.is_not(None)))
        measures = _measures(labelled.all(), calibration)
        estimate = None
        if calibration is not None:
            latest = self._latest(of).with_only_columns(predictions.c.confidence)
            confidences = connection.scalars(latest).all()
            estimate = calibration.estimate(confidences) if confidences else None
        if reference is not None:
            return VersionQuality(*of, measures, estimate, reference=reference.name)
        reason = _NOT_CALIBRATED if tag in self._references else _NOT_HERE
        return VersionQuality(*of, measures, estimate, reason=reason)

    def _latest(self, of: ServedVersion) -> Select[Any]:
        columns = predictions.c
        statement = select(columns.label, columns.truth, columns.confidence, columns.answered_at)
        conditions = (columns[name] == value for name, value in of._asdict().items())
        return statement.where(*conditions).order_by(columns.id.desc()).limit(self._rows)


def _measures(rows: Sequence[Row[Any]], calibration: Calibration | None) -> Measures | None:
    if not rows:
        return None
    answered, right, sure, at = (np.asarray(column).tolist() for column in zip(*rows, strict=True))
    result = scores(answered, right)
    error = None
    if calibration is not None:
        error = abs(calibration.estimate(sure).accuracy - result.accuracy)
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
