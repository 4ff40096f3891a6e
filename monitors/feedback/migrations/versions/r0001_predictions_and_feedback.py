"""Create the tables of predictions, labels and versions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the tables, and the indexes of all queries."""
    op.create_table(
        "kaiten_predictions",
        sa.Column("id", _ID, primary_key=True, autoincrement=True),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("item", sa.Integer(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("arm", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("confidence", sa.Double(), nullable=False),
        sa.Column("answered_at", sa.Double(), nullable=False),
        sa.Column("truth", sa.Text()),
    )
    op.create_index(
        "kaiten_predictions_by_request", "kaiten_predictions", ["request_id", "item", "id"]
    )
    op.create_index(
        "kaiten_predictions_by_version", "kaiten_predictions", ["model", "version", "arm", "id"]
    )
    labelled = sa.text("truth IS NOT NULL")
    op.create_index(
        "kaiten_predictions_labelled",
        "kaiten_predictions",
        ["model", "version", "arm", "id"],
        sqlite_where=labelled,
        postgresql_where=labelled,
    )
    op.create_table(
        "kaiten_feedback",
        sa.Column("request_id", sa.Text(), primary_key=True),
        sa.Column("item", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("models", sa.Text(), primary_key=True),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("received_at", sa.Double(), nullable=False),
        sa.Column("joined", sa.Boolean(), nullable=False),
    )
    op.create_index("kaiten_feedback_by_time", "kaiten_feedback", ["received_at"])
    op.create_index(
        "kaiten_feedback_waiting",
        "kaiten_feedback",
        ["received_at"],
        sqlite_where=sa.text("joined = 0"),
        postgresql_where=sa.text("NOT joined"),
    )
    op.create_table(
        "kaiten_version_labels",
        sa.Column("model", sa.Text(), primary_key=True),
        sa.Column("version", sa.Text(), primary_key=True),
        sa.Column("label", sa.Text(), primary_key=True),
    )
