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
HEAD = "0002"
# Its own, as another user of Alembic may use the database.
VERSION_TABLE = "kaiten_alembic_version"

# In place of the models, where a sender may label all of them: no name is written so.
ALL = "*"

# Times are seconds of the epoch. ``truth`` is the label that came in for it; of two predictions,
# ``id`` tells which came later. Names say whose they are, as others may use the database.
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
# What was accepted, be its prediction known or not; ``joined`` once one was found that fits.
# ``models`` are the names that its sender may label, separated by spaces, or ALL. They are a part
# of the key: nobody takes the place of a label that waits for a model which they may not label.
# ``sender`` is the pseudonym of its subject, for as long as it waits.
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
# The labels that a version has: written with its first answers, and held against what comes in.
version_labels = Table(
    "kaiten_version_labels",
    METADATA,
    Column("model", Text, primary_key=True),
    Column("version", Text, primary_key=True),
    Column("label", Text, primary_key=True),
)
