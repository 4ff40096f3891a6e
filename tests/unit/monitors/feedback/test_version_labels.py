from sqlalchemy import select

from kaiten.serving import ServedModel
from monitors.feedback.database import Database
from monitors.feedback.tables import version_labels
from monitors.feedback.version_labels import Versions


def keep(database: Database, known: dict[str, list[str]], *answered: str) -> None:
    with database.writing() as connection:
        models = {tag: ServedModel(tag, (*labels,), "") for tag, labels in known.items()}
        Versions(models).keep(connection, answered)


def kept(database: Database) -> set[tuple[str, str, str]]:
    with database.reading() as connection:
        return {(*row,) for row in connection.execute(select(version_labels))}


def test_labels_of_what_has_answered_are_kept(database: Database) -> None:
    known = {"intent:1.0.0": ["a", "b"], "intent:2.0.0": ["a"], "silent:1.0.0": ["c"]}
    for _ in range(2):
        keep(database, known, "intent:1.0.0", "intent:2.0.0", "unknown:1.0.0")
    assert kept(database) == {
        ("intent", "1.0.0", "a"),
        ("intent", "1.0.0", "b"),
        ("intent", "2.0.0", "a"),
    }


def test_version_that_was_made_again_has_its_new_labels(database: Database) -> None:
    keep(database, {"intent:1.0.0": ["a", "b"], "other:1.0.0": ["a"]}, "other:1.0.0")
    keep(database, {"intent:1.0.0": ["a", "b"]}, "intent:1.0.0")
    keep(database, {"intent:1.0.0": ["b", "c"]}, "intent:1.0.0")
    assert kept(database) == {
        ("intent", "1.0.0", "b"),
        ("intent", "1.0.0", "c"),
        ("other", "1.0.0", "a"),
    }
