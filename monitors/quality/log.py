"""The log of predictions, which labels are joined to: never a text, nor who asked.

Records wait in a bounded queue; a side thread writes what has come, once a second. The request path
pays for one append to the queue.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import structlog
from sqlalchemy import Connection, insert, select

from kaiten import tags
from kaiten.errors import DatabaseUnavailable
from kaiten.records import PredictionRecord
from kaiten.sections import Quality
from monitors.quality.database import Database
from monitors.quality.tables import predictions
from monitors.quality.versions import Versions

logger = structlog.get_logger(__name__)
_POLL_S = 1.0
_END_S = 10.0
# Of one batch; a row among ten thousand is found with fourteen.
_MAX_FAULTS = 100
Row = dict[str, str | int | float]


class PredictionLog:
    """Writes records in a thread of its own, from start to close."""

    def __init__(
        self,
        database: Database,
        versions: Versions,
        settings: Quality,
        on_drop: Callable[[int], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._versions = versions
        self._max_pending = settings.max_pending_records
        self._on_drop = on_drop
        self._clock = clock
        self._pending: deque[tuple[float, PredictionRecord]] = deque()
        # What is being written: it stays until it is. Whether the first part was tried before, and
        # how often a part could not be written, though the database was there.
        self._parts: list[list[Row]] = []
        self._tried = self._failing = False
        self._faults = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)

    def start(self) -> None:
        """Start the side thread."""
        self._thread.start()

    def put(self, records: Sequence[PredictionRecord]) -> None:
        """Keep records to be written; what does not fit is counted as dropped."""
        now = self._clock()
        room = max(0, self._max_pending - len(self._pending) - self._in_hand)
        self._pending.extend((now, record) for record in records[:room])
        if len(records) > room:
            self._on_drop(len(records) - room)

    def stop(self) -> None:
        """Begin to end; close waits for it."""
        self._closing.set()

    def close(self) -> None:
        """Write what waits, and stop; what can not be written now is counted as dropped."""
        self.stop()
        if self._thread.is_alive():
            # No longer: a database may hang.
            self._thread.join(_END_S)

    def step(self) -> None:
        """Write what waits in one transaction; where the database is away, it waits on."""
        if not self._parts and self._pending:
            self._parts = [[_row(*self._pending.popleft()) for _ in range(len(self._pending))]]
            self._tried, self._faults = False, 0
        try:
            while self._parts:
                self._write_part()
        except DatabaseUnavailable:
            self._tried = True

    def _write_part(self) -> None:
        """Write the first part, halve it, or drop it: one row that can not be written costs itself.

        Not for ever, as it may be all of them.
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
            # Told once, until something is written again.
            if not self._failing:
                logger.exception("predictions_not_written")
            self._failing = True
        self._parts, self._tried = self._parts[1:], False

    def _run(self) -> None:
        while not self._closing.wait(_POLL_S):
            self.step()
        # Once for a batch that has failed before, and once for what came after it.
        self.step()
        self.step()
        if left := self._in_hand + len(self._pending):
            self._on_drop(left)

    @property
    def _in_hand(self) -> int:
        return sum(map(len, self._parts))

    def _write(self, rows: list[Row]) -> None:
        with self._database.writing() as connection:
            # A connection that broke at the very end may have broken after it.
            if not (self._tried and _is_there(connection, rows[0])):
                answered = {f"{row['model']}:{row['version']}" for row in rows}
                self._versions.keep(connection, answered)
                connection.execute(insert(predictions), rows)


def _row(answered_at: float, record: PredictionRecord) -> Row:
    model, version = tags.split(record.model)
    return {
        "request_id": record.request_id,
        "item": record.item,
        "model": model,
        "version": version,
        "arm": record.arm,
        "label": record.label,
        "confidence": record.confidence,
        "answered_at": answered_at,
    }


def _is_there(connection: Connection, row: Row) -> bool:
    same = (predictions.c[name] == value for name, value in row.items())
    return connection.scalar(select(predictions.c.id).where(*same).limit(1)) is not None
