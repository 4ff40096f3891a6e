"""Which labels a version has: kept beside its predictions, for hosts that do not serve it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from kaiten import tags
from monitors.quality.tables import version_labels


class Versions:
    """The labels of each ``name:version`` that is served here."""

    def __init__(self, known: Mapping[str, Sequence[str]]) -> None:
        self._known = {tag: frozenset(labels) for tag, labels in known.items()}

    def keep(self, connection: Connection, answered: Iterable[str]) -> None:
        """Have the database know the labels of these, before or with what they answered."""
        # In one order: of two who keep the same, one waits for the other.
        for tag in sorted({*answered} & self._known.keys()):
            _keep(connection, tag, self._known[tag])


def _keep(connection: Connection, tag: str, labels: frozenset[str]) -> None:
    model, version = tags.split(tag)
    of_version = (version_labels.c.model == model, version_labels.c.version == version)
    kept = connection.scalars(select(version_labels.c.label).where(*of_version)).all()
    if labels == {*kept}:
        return
    # One that was made again by its old name, on a machine where it was tried out.
    connection.execute(delete(version_labels).where(*of_version))
    rows = [{"model": model, "version": version, "label": each} for each in sorted(labels)]
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(dialect.insert(version_labels).on_conflict_do_nothing(), rows)
