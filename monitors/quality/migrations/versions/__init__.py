"""The revisions, each by its number."""
