"""Stores the labels of each version beside its predictions, for hosts that do not serve it."""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from kaiten import model_tags
from kaiten.serving import ServedModel
from monitors.feedback.tables import version_labels


class Versions:
    """The labels of each version that serves here now, by model tag."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self._models = models

    def keep(self, connection: Connection, answered: Iterable[str]) -> None:
        """Store the labels of these versions, in the transaction of their predictions."""
        # Sorted, so that concurrent transactions cannot deadlock.
        for tag in sorted({*answered} & self._models.keys()):
            _keep(connection, tag, frozenset(self._models[tag].labels))


def _keep(connection: Connection, tag: str, labels: frozenset[str]) -> None:
    model, version = model_tags.split(tag)
    of_version = (version_labels.c.model == model, version_labels.c.version == version)
    stored = connection.scalars(select(version_labels.c.label).where(*of_version)).all()
    if labels == {*stored}:
        return
    # During development a version may be registered again under the same name.
    connection.execute(delete(version_labels).where(*of_version))
    rows = [{"model": model, "version": version, "label": each} for each in sorted(labels)]
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(dialect.insert(version_labels).on_conflict_do_nothing(), rows)
