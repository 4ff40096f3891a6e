"""Deletes predictions and labels that are older, or more, than the settings allow."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import ColumnElement, Connection, Delete, delete, func, select, true, tuple_

from kaiten.settings.models import FeedbackSettings
from monitors.feedback.database import Database
from monitors.feedback.labels import WAIT_S
from monitors.feedback.tables import feedback, predictions

# Rows deleted in one transaction, for which other writers wait.
_BATCH = 1000
_DAY_S = 86_400
# Pages that one vacuum returns to the file system.
_PAGES = 5000


class Pruner:
    """Deletes in small transactions, so that other writers wait only briefly."""

    def __init__(self, database: Database, settings: FeedbackSettings) -> None:
        self._database = database
        self._keep_s = settings.retention_days * _DAY_S
        self._keep_rows = settings.max_rows

    def prune(self, now: float) -> int:
        """Delete rows that are too old or too many; return how many. ``now`` is in epoch seconds.

        Raises:
            DatabaseUnavailable: The database cannot be reached, or is locked.

        """
        with self._database.reading() as connection:
            statements = [*self._statements(connection, now)]
        deleted = sum(self._repeat(statement) for statement in statements)
        deleted += self._prune_excess_labels()
        self._vacuum()
        return deleted

    def _vacuum(self) -> None:
        """Return free pages of SQLite's file to the file system, up to _PAGES."""
        with self._database.writing() as connection:
            if connection.dialect.name == "sqlite":
                # A cursor executes only the first step of the pragma, which frees one page. A
                # script executes all, after it has ended the transaction.
                script: Any = connection.connection.driver_connection
                script.executescript(f"PRAGMA incremental_vacuum({_PAGES})")

    def _prune_excess_labels(self) -> int:
        """Delete the oldest labels over the limit, waiting ones first.

        So labels for made-up ids displace each other, and no label that was joined.
        """
        with self._database.reading() as connection:
            count = connection.scalar(select(func.count()).select_from(feedback)) or 0
        left = excess = max(0, count - self._keep_rows)
        for condition in (~feedback.c.joined, true()):
            deleted = 1
            while left and deleted:
                with self._database.writing() as connection:
                    statement = _delete_labels(condition, min(left, _BATCH))
                    deleted = connection.execute(statement).rowcount
                left -= deleted
        return excess - left

    def _repeat(self, statement: Delete) -> int:
        deleted = _BATCH
        total = 0
        while deleted == _BATCH:
            with self._database.writing() as connection:
                deleted = connection.execute(statement).rowcount
            total += deleted
        return total

    def _statements(self, connection: Connection, now: float) -> Iterator[Delete]:
        before = now - self._keep_s
        id_, at = predictions.c.id, predictions.c.answered_at
        # The order of ids is that of answers, to within seconds.
        oldest = select(id_, at).order_by(id_).limit(_BATCH).subquery()
        old = select(oldest.c.id).where(oldest.c.answered_at < before)
        yield delete(predictions).where(id_.in_(old))
        first, last = connection.execute(select(func.min(id_), func.max(id_))).one()
        # Ids may have gaps, so the rows are counted, but only if the range of ids is long enough.
        if last is not None and last - first >= self._keep_rows:
            excess = select(id_).order_by(id_.desc()).offset(self._keep_rows).limit(1)
            bound = connection.scalar(excess)
            if bound is not None:
                many = select(id_).where(id_ <= bound).order_by(id_).limit(_BATCH)
                yield delete(predictions).where(id_.in_(many))
        yield _delete_labels(feedback.c.received_at < before, _BATCH)
        # Labels that have waited too long have no prediction.
        expired = ~feedback.c.joined & (feedback.c.received_at < now - WAIT_S)
        yield _delete_labels(expired, _BATCH)


def _delete_labels(condition: ColumnElement[bool], count: int) -> Delete:
    """Return a statement that deletes the oldest ``count`` labels that satisfy a condition."""
    key = (feedback.c.request_id, feedback.c.item, feedback.c.models)
    oldest = select(*key).where(condition).order_by(feedback.c.received_at).limit(count)
    return delete(feedback).where(tuple_(*key).in_(oldest))
