"""The current tables; the migrations hold their history."""

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
# The revision of these tables.
HEAD = "0002"
# A table of our own, because another application with Alembic may use the database.
VERSION_TABLE = "kaiten_alembic_version"

# Stands for all models in the column ``models``; no model can have this name.
ALL = "*"

# Times are epoch seconds. ``truth`` is the label from feedback. Of two predictions, the one with
# the higher ``id`` is later. The prefix keeps names apart from those of other applications.
predictions = Table(
    "kaiten_predictions",
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
    Index("kaiten_predictions_by_request", "request_id", "item", "id"),
    Index("kaiten_predictions_by_version", "model", "version", "arm", "id"),
    Index(
        "kaiten_predictions_labelled",
        *("model", "version", "arm", "id"),
        sqlite_where=text("truth IS NOT NULL"),
        postgresql_where=text("truth IS NOT NULL"),
    ),
)
# Accepted labels, with or without a known prediction; ``joined`` once a matching one was found.
# ``models`` are the names of models that the sender may label, separated by spaces, or ALL. They
# are part of the key, so that no sender replaces a label for a model that it may not label.
# ``sender`` is the pseudonym of the sender while the label waits.
feedback = Table(
    "kaiten_feedback",
    METADATA,
    Column("request_id", Text, primary_key=True),
    Column("item", Integer, primary_key=True, autoincrement=False),
    Column("models", Text, primary_key=True),
    Column("label", Text, nullable=False),
    Column("received_at", Double, nullable=False),
    Column("joined", Boolean, nullable=False),
    Column("sender", Text),
    Index("kaiten_feedback_by_time", "received_at"),
    Index(
        "kaiten_feedback_waiting_by_sender",
        "sender",
        sqlite_where=text("joined = 0"),
        postgresql_where=text("NOT joined"),
    ),
    Index(
        "kaiten_feedback_waiting",
        "received_at",
        sqlite_where=text("joined = 0"),
        postgresql_where=text("NOT joined"),
    ),
)
# The labels of a version: written with its first predictions, and checked against feedback.
version_labels = Table(
    "kaiten_version_labels",
    METADATA,
    Column("model", Text, primary_key=True),
    Column("version", Text, primary_key=True),
    Column("label", Text, primary_key=True),
)
