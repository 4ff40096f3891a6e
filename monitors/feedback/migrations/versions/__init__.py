"""Alembic revisions, by number."""
