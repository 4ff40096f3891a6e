"""Labels: taken in, and joined to the predictions that they are for."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    bindparam,
    delete,
    func,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from kaiten.errors import DatabaseUnavailable, Detail, Forbidden, InvalidInput
from kaiten.quality import Label
from monitors.quality.database import RETRY_S, Database
from monitors.quality.tables import feedback, predictions

# A prediction is written within seconds, or once the database is back. A label that has waited for
# longer waits for nothing, and is only kept.
_WAIT_S = 3600
_AT_ONCE = 10_000
# Under what SQLite takes in one statement.
_KEYS_AT_ONCE = 1000
Key = tuple[str, int]
# A label, and the prediction that it is for: request_id, item, label, models, id, model, version.
Match = Row[*tuple[Any, ...]]


class Joined(NamedTuple):
    """How many labels found their predictions, and how many did not fit them."""

    joined: int
    dropped: int


class Labels:
    """The labels that came in; ``known`` has those of each ``name:version`` that is served here."""

    def __init__(
        self,
        database: Database,
        known: Mapping[str, Sequence[str]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._known = {tag: frozenset(labels) for tag, labels in known.items()}
        self._clock = clock

    def take(
        self,
        labels: Sequence[Label],
        models: frozenset[str] | None,
        given_up: Callable[[], bool] = lambda: False,
    ) -> None:
        """Keep all of them, on the disk when this returns, or none; of two for one text, the last.

        ``models`` are the names that the sender may label, None for all. InvalidInput or Forbidden
        for what does not fit a prediction that is known, where another may still come;
        DatabaseUnavailable, also where by the end of it the sender has given up.
        """
        last = {(each.request_id, each.item): each.label for each in labels}
        # In one order, whoever sends them: two senders would else wait for each other.
        keys = sorted(last)
        with self._database.writing() as connection:
            _keep(connection, [(key, last[key]) for key in keys], models, self._clock())
            for start in range(0, len(keys), _KEYS_AT_ONCE):
                of = tuple_(feedback.c.request_id, feedback.c.item)
                found = _matches(connection, of.in_(keys[start : start + _KEYS_AT_ONCE]))
                self._check(labels, {(each.request_id, each.item): each for each in found}, models)
                _join(connection, found)
            if given_up():
                raise DatabaseUnavailable(RETRY_S)

    def join_waiting(self) -> Joined:
        """Join labels whose predictions were written after them; DatabaseUnavailable.

        Those that do not fit are dropped: when they were taken, nobody could tell.
        """
        with self._database.writing() as connection:
            found = _matches(connection, feedback.c.received_at > self._clock() - _WAIT_S)
            fitting = [each for each in found if self._fits(each)]
            unfit = [each for each in found if not self._fits(each)]
            _join(connection, fitting)
            _drop(connection, unfit)
        return Joined(len(fitting), len(unfit))

    def _check(
        self, labels: Sequence[Label], found: Mapping[Key, Match], models: frozenset[str] | None
    ) -> None:
        details = []
        for index, label in enumerate(labels):
            match = found.get((label.request_id, label.item))
            if match is None:
                continue
            if models is not None and match.model not in models:
                raise Forbidden(f"feedback:{match.model}")
            if not self._has(match, label.label):
                reason = f"is no label of {match.model}:{match.version}, which answered"
                details.append(Detail(f"feedback.{index}.label", reason))
        if details:
            raise InvalidInput(details)

    def _fits(self, match: Match) -> bool:
        allowed = match.models is None or match.model in match.models.split()
        return allowed and self._has(match, match.label)

    def _has(self, match: Match, label: str) -> bool:
        labels = self._known.get(f"{match.model}:{match.version}")
        # Of a version that is not served here, nobody can tell.
        return labels is None or label in labels


def _keep(
    connection: Connection,
    labels: Sequence[tuple[Key, str]],
    models: frozenset[str] | None,
    now: float,
) -> None:
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    insert = dialect.insert(feedback)
    taken: dict[str, object] = {"received_at": now, "models": None, "joined": False}
    if models is not None:
        taken["models"] = " ".join(sorted(models))
    replaced = {name: insert.excluded[name] for name in ("label", *taken)}
    connection.execute(
        insert.on_conflict_do_update(index_elements=["request_id", "item"], set_=replaced),
        [
            {"request_id": id_, "item": item, "label": label} | taken
            for (id_, item), label in labels
        ],
    )


def _matches(connection: Connection, which: ColumnElement[bool]) -> Sequence[Match]:
    """Return those of the labels that are not joined whose prediction is known.

    Where a caller has used one request id twice, it is the later prediction.
    """
    other = predictions.alias()
    latest = (
        select(func.max(other.c.id))
        .where(other.c.request_id == feedback.c.request_id, other.c.item == feedback.c.item)
        .scalar_subquery()
    )
    found = select(
        *(feedback.c.request_id, feedback.c.item, feedback.c.label, feedback.c.models),
        *(predictions.c.id, predictions.c.model, predictions.c.version),
    ).join_from(feedback, predictions, predictions.c.id == latest)
    # As the index of them has it.
    found = found.where(~feedback.c.joined, which).order_by(feedback.c.received_at.desc())
    return connection.execute(found.limit(_AT_ONCE)).all()


def _join(connection: Connection, matches: Sequence[Match]) -> None:
    if not matches:
        return
    connection.execute(
        update(predictions)
        .where(predictions.c.id == bindparam("of"))
        .values(truth=bindparam("is")),
        [{"of": each.id, "is": each.label} for each in sorted(matches, key=lambda m: m.id)],
    )
    connection.execute(update(feedback).where(*_OF_KEY).values(joined=True), _keys(matches))


def _drop(connection: Connection, matches: Sequence[Match]) -> None:
    if matches:
        connection.execute(delete(feedback).where(*_OF_KEY), _keys(matches))


_OF_KEY = (feedback.c.request_id == bindparam("of"), feedback.c.item == bindparam("at"))


def _keys(matches: Sequence[Match]) -> list[dict[str, object]]:
    return [{"of": each.request_id, "at": each.item} for each in matches]
