"""The tables. What they once were, and how they came to this, stands in the migrations."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    text,
)

METADATA = MetaData()
# What the migrations come to.
HEAD = "0001"

# Times are seconds of the epoch. ``truth`` is the label that came in for it; of two predictions,
# ``id`` tells which came later.
predictions = Table(
    "predictions",
    METADATA,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("request_id", Text, nullable=False),
    Column("item", Integer, nullable=False),
    Column("model", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("arm", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("confidence", Double, nullable=False),
    Column("answered_at", Double, nullable=False),
    Column("truth", Text),
    Index("predictions_by_request", "request_id", "item", "id"),
    Index("predictions_by_version", "model", "version", "arm", "id"),
    Index(
        "predictions_labelled",
        *("model", "version", "arm", "id"),
        sqlite_where=text("truth IS NOT NULL"),
        postgresql_where=text("truth IS NOT NULL"),
    ),
)
# What was accepted, be its prediction known or not; ``joined`` once it was looked for and found.
# ``models`` are the names that its sender may label, separated by spaces; null where it is all.
feedback = Table(
    "feedback",
    METADATA,
    Column("request_id", Text, primary_key=True),
    Column("item", Integer, primary_key=True, autoincrement=False),
    Column("label", Text, nullable=False),
    Column("received_at", Double, nullable=False),
    Column("models", Text),
    Column("joined", Boolean, nullable=False),
    Index("feedback_by_time", "received_at"),
    Index(
        "feedback_waiting",
        "received_at",
        sqlite_where=text("joined = 0"),
        postgresql_where=text("NOT joined"),
    ),
)
