"""Forgets what is older than it is kept for, or one too many; nothing that is neither."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import ColumnElement, Connection, Delete, delete, func, select, true, tuple_

from kaiten.sections import Quality
from monitors.quality.database import Database
from monitors.quality.labels import WAIT_S
from monitors.quality.tables import feedback, predictions

# In one transaction: a writer waits for it.
_BATCH = 1000
_DAY_S = 86_400
_PAGES = 5000


class Pruning:
    """Deletes in small transactions, between which others write."""

    def __init__(self, database: Database, settings: Quality) -> None:
        self._database = database
        self._keep_s = settings.keep_days * _DAY_S
        self._keep_rows = settings.keep_rows

    def prune(self, now: float) -> int:
        """Return how many rows were deleted; DatabaseUnavailable. ``now`` by the epoch."""
        with self._database.reading() as connection:
            statements = [*self._statements(connection, now)]
        deleted = sum(self._repeat(each) for each in statements)
        deleted += self._prune_labels_beyond()
        self._give_back_pages()
        return deleted

    def _give_back_pages(self) -> None:
        """Make SQLite's file smaller by what was deleted, some pages at a time."""
        with self._database.writing() as connection:
            if connection.dialect.name == "sqlite":
                # Each page is a step, of which a cursor takes one; a script takes all, once it
                # has ended the transaction.
                script: Any = connection.connection.driver_connection
                script.executescript(f"PRAGMA incremental_vacuum({_PAGES})")

    def _prune_labels_beyond(self) -> int:
        """Delete the oldest labels beyond the count; those that wait for an answer first.

        So labels for nothing drive out each other, and none that has found its answer.
        """
        with self._database.reading() as connection:
            kept = connection.scalar(select(func.count()).select_from(feedback)) or 0
        left = beyond = max(0, kept - self._keep_rows)
        for which in (~feedback.c.joined, true()):
            deleted = 1
            while left and deleted:
                with self._database.writing() as connection:
                    statement = _delete_labels(which, min(left, _BATCH))
                    deleted = connection.execute(statement).rowcount
                left -= deleted
        return beyond - left

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
        # Those that were written first are those that were answered first, but for seconds.
        oldest = select(id_, at).order_by(id_).limit(_BATCH).subquery()
        old = select(oldest.c.id).where(oldest.c.answered_at < before)
        yield delete(predictions).where(id_.in_(old))
        first, last = connection.execute(select(func.min(id_), func.max(id_))).one()
        # Numbers may be left out, so only their count tells; most of the time, nothing needs one.
        if last is not None and last - first >= self._keep_rows:
            beyond = select(id_).order_by(id_.desc()).offset(self._keep_rows).limit(1)
            bound = connection.scalar(beyond)
            if bound is not None:
                many = select(id_).where(id_ <= bound).order_by(id_).limit(_BATCH)
                yield delete(predictions).where(id_.in_(many))
        yield _delete_labels(feedback.c.received_at < before, _BATCH)
        # No answer is looked for any more.
        unfound = ~feedback.c.joined & (feedback.c.received_at < now - WAIT_S)
        yield _delete_labels(unfound, _BATCH)


def _delete_labels(which: ColumnElement[bool], count: int) -> Delete:
    """Delete the oldest of them."""
    key = (feedback.c.request_id, feedback.c.item, feedback.c.models)
    oldest = select(*key).where(which).order_by(feedback.c.received_at).limit(count)
    return delete(feedback).where(tuple_(*key).in_(oldest))
