"""The log of predictions, to which labels are joined. It holds no texts and no callers.

They wait in a bounded queue, and a thread writes them once a second. A request only appends to the
queue.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from operator import attrgetter
from typing import Any

import structlog
from sqlalchemy import Connection, delete, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from kaiten import model_tags
from kaiten.errors import DatabaseUnavailable
from kaiten.events import PredictionEvent
from kaiten.serving import ServedModel
from kaiten.settings.models import FeedbackSettings
from monitors.feedback.database import Database
from monitors.feedback.tables import predictions, version_labels

logger = structlog.get_logger(__name__)
_POLL_S = 1.0
_CLOSE_TIMEOUT_S = 10.0
# Failed writes of one batch. Bisecting to one bad row of ten thousand takes fourteen.
_MAX_FAULTS = 100
Row = dict[str, str | int | float]
# Of an event, the fields of its row: the event itself would keep its text in memory.
_STORED = attrgetter("request_id", "item", "model_tag", "arm", "label", "confidence")


class PredictionLog:
    """Writes predictions to the database on a thread, from start to close.

    ``models`` are those that serve now, by model tag. Their labels are stored beside their
    predictions, for hosts that do not serve them.
    """

    def __init__(
        self,
        database: Database,
        models: Mapping[str, ServedModel],
        settings: FeedbackSettings,
        on_drop: Callable[[int], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._models = models
        self._max_pending = settings.max_pending_events
        self._on_drop = on_drop
        self._clock = clock
        self._pending: deque[tuple[float, tuple[Any, ...]]] = deque()
        # The batch being written, in parts; whether the first part was tried before; and how many
        # parts failed although the database was available.
        self._parts: list[list[Row]] = []
        self._tried = self._failing = False
        self._faults = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)

    def start(self) -> None:
        """Start the side thread."""
        self._thread.start()

    def handle(self, events: Sequence[PredictionEvent]) -> None:
        """Queue the fields of rows; events that do not fit are counted as dropped."""
        now = self._clock()
        room = max(0, self._max_pending - len(self._pending) - self._in_hand)
        self._pending.extend((now, _STORED(event)) for event in events[:room])
        if len(events) > room:
            self._on_drop(len(events) - room)

    def stop(self) -> None:
        """Ask the thread to end; close waits for it."""
        self._closing.set()

    def close(self) -> None:
        """Write waiting rows, and stop; those that cannot be written are counted as dropped."""
        self.stop()
        if self._thread.is_alive():
            # With a timeout, because the database may hang.
            self._thread.join(_CLOSE_TIMEOUT_S)

    def step(self) -> None:
        """Write waiting rows in one transaction; they stay if the database is unavailable."""
        if not self._parts and self._pending:
            self._parts = [[_row(*self._pending.popleft()) for _ in range(len(self._pending))]]
            self._tried, self._faults = False, 0
        try:
            while self._parts:
                self._write_part()
        except DatabaseUnavailable:
            self._tried = True

    def _write_part(self) -> None:
        """Write the first part or, after an error, bisect it until only bad rows are dropped.

        After _MAX_FAULTS errors the part is dropped whole, because every row may be bad.
        """
        rows = self._parts[0]
        try:
            self._write(rows)
            self._failing = False
        except DatabaseUnavailable:
            raise
        except Exception:
            self._faults += 1
            if len(rows) > 1 and self._faults <= _MAX_FAULTS:
                half = len(rows) // 2
                self._parts[:1] = [rows[:half], rows[half:]]
                return
            self._on_drop(len(rows))
            # Logged once, until a write succeeds.
            if not self._failing:
                logger.exception("predictions_not_written")
            self._failing = True
        self._parts, self._tried = self._parts[1:], False

    def _run(self) -> None:
        while not self._closing.wait(_POLL_S):
            self.step()
        # Once for a batch that failed before, and once for the rows after it.
        self.step()
        self.step()
        if unwritten := self._in_hand + len(self._pending):
            self._on_drop(unwritten)

    @property
    def _in_hand(self) -> int:
        return sum(map(len, self._parts))

    def _write(self, rows: list[Row]) -> None:
        with self._database.writing() as connection:
            # The last attempt may have committed before its connection broke.
            if not (self._tried and _is_stored(connection, rows[0])):
                tags = {f"{row['model']}:{row['version']}" for row in rows}
                for tag in sorted(tags & self._models.keys()):
                    store_labels(connection, tag, frozenset(self._models[tag].labels))
                connection.execute(insert(predictions), rows)


def _row(answered_at: float, fields: tuple[Any, ...]) -> Row:
    request_id, item, model_tag, arm, label, confidence = fields
    model, version = model_tags.split(model_tag)
    return {
        "request_id": request_id,
        "item": item,
        "model": model,
        "version": version,
        "arm": arm,
        "label": label,
        "confidence": confidence,
        "answered_at": answered_at,
    }


def _is_stored(connection: Connection, row: Row) -> bool:
    conditions = (predictions.c[name] == value for name, value in row.items())
    return connection.scalar(select(predictions.c.id).where(*conditions).limit(1)) is not None


def store_labels(connection: Connection, model_tag: str, labels: Collection[str]) -> None:
    """Store the labels of a version, in the transaction of its predictions.

    To avoid deadlocks, concurrent transactions store versions in the order of their tags.
    """
    model, version = model_tags.split(model_tag)
    columns = version_labels.c
    conditions = (columns.model == model, columns.version == version)
    stored = connection.scalars(select(columns.label).where(*conditions)).all()
    if {*labels} == {*stored}:
        return
    # During development a version may be registered again under the same name.
    connection.execute(delete(version_labels).where(*conditions))
    rows = [{"model": model, "version": version, "label": label} for label in sorted(labels)]
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(dialect.insert(version_labels).on_conflict_do_nothing(), rows)
