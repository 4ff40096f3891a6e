"""Record the sender of waiting labels, to bound them for each sender."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column, which older versions of Kaiten leave empty, and the index to count by."""
    op.add_column("kaiten_feedback", sa.Column("sender", sa.Text()))
    op.create_index(
        "kaiten_feedback_waiting_by_sender",
        "kaiten_feedback",
        ["sender"],
        sqlite_where=sa.text("joined = 0"),
        postgresql_where=sa.text("NOT joined"),
    )
