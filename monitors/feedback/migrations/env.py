"""Alembic's environment: runs missing revisions on the connection that the caller passes."""

from alembic import context

from monitors.feedback.tables import METADATA, VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
