"""Made-up predictions and labels, and the rows of a database."""

from typing import Any

from sqlalchemy import insert, select

from monitors.feedback.database import Database
from monitors.feedback.predictions import store_labels
from monitors.feedback.tables import feedback, predictions


def row(**fields: Any) -> dict[str, Any]:  # noqa: ANN401  of many types
    """Return a usual prediction, but for these fields."""
    usual = {
        "request_id": "request-1",
        "item": 0,
        "model": "intent",
        "version": "1.0.0",
        "arm": "production",
        "label": "billing",
        "confidence": 0.5,
        "answered_at": 1000.0,
        "truth": None,
    }
    return usual | fields


def put(database: Database, *rows: dict[str, Any]) -> None:
    """Write predictions."""
    with database.writing() as connection:
        connection.execute(insert(predictions), [*rows])


def put_version_labels(database: Database, tag: str = "intent:1.0.0", *labels: str) -> None:
    """Store a version's labels: billing and delivery if none are named."""
    with database.writing() as connection:
        store_labels(connection, tag, labels or ("billing", "delivery"))


def truths(database: Database) -> list[tuple[str, int, str | None]]:
    """Return each prediction's request, item and label that came in, in order."""
    columns = predictions.c.request_id, predictions.c.item, predictions.c.truth
    with database.reading() as connection:
        rows = connection.execute(select(*columns).order_by(predictions.c.id))
        return [(id_, item, truth) for id_, item, truth in rows]


def stored_feedback(database: Database) -> dict[tuple[str, int], tuple[str, bool]]:
    """Return the labels that are kept, and whether each is joined, by request and item."""
    columns = feedback.c.request_id, feedback.c.item, feedback.c.label, feedback.c.joined
    with database.reading() as connection:
        rows = connection.execute(select(*columns))
        return {(id_, item): (label, joined) for id_, item, label, joined in rows}
