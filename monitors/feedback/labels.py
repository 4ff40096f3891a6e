"""Stores labels from feedback and joins them to their predictions.

To avoid deadlocks, a transaction that changes both tables locks rows of feedback first, and then
predictions in order of their ids.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    bindparam,
    func,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from kaiten.errors import DatabaseUnavailable, Detail, Forbidden, InvalidInput, RateLimited
from kaiten.feedback import Label
from monitors.feedback.database import RETRY_S, Database
from monitors.feedback.tables import ALL, feedback, predictions, version_labels

# A prediction is written within seconds, or once the database is available again. A label that has
# waited for longer has no prediction.
WAIT_S = 3600
# Labels joined in one transaction.
_JOIN_BATCH = 10_000
# Keys in one statement, below SQLite's limit of parameters.
_KEY_BATCH = 1000
_MAX_DETAILS = 20
# Labels that wait for a prediction: any caller with the scope may send them for made-up ids. One
# sender may have a fifth of them or less. All together take at most some 25 MB, with 1,000
# characters each.
MAX_WAITING = 20_000
MAX_WAITING_OF_SENDER = 4_000
_RETRY_S = 60
_COUNT_WAITING = select(func.count()).select_from(feedback).where(~feedback.c.joined)
Key = tuple[str, int]
# A label with its prediction: request_id, item, label, models, received_at, prediction id.
Match = Row[*tuple[Any, ...]]


class Labels:
    """The labels in the database."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.database = database
        self._clock = clock

    def take(
        self,
        labels: Sequence[Label],
        models: frozenset[str] | None,
        given_up: Callable[[], bool] = lambda: False,
        subject: str = "",
    ) -> int:
        """Store all labels durably, or none; of two for one text, the last counts.

        Returns how many were joined to predictions; the others wait for theirs. ``models`` are the
        names of the models that the sender may label, None for all; ``subject`` is the sender's
        pseudonym. ``given_up`` is asked before the commit.

        Raises:
            InvalidInput: The version that answered a text does not have the label.
            Forbidden: The sender may not label the model that answered a text.
            RateLimited: Too many labels wait, of this sender or in all.
            DatabaseUnavailable: The database cannot be reached, or the sender has given up.

        """
        last = {(each.request_id, each.item): each.label for each in labels}
        # Sorted, so that concurrent senders lock rows in the same order and cannot deadlock.
        keys = sorted(last)
        sender = ALL if models is None else " ".join(sorted(models))
        with self.database.writing() as connection:
            waiting_before = _waiting_of(connection, keys, subject)
            _keep(connection, [(key, last[key]) for key in keys], (sender, subject), self._clock())
            found = [*_found(connection, keys)]
            if answered := _answered(connection, _missing(keys, found, sender), sender):
                # Looked up again: the prediction may have been written between the two queries.
                found = [*_found(connection, keys)]
                unfit = [key for key in _missing(keys, found, sender) if key in answered]
                places = {(label.request_id, label.item): at for at, label in enumerate(labels)}
                _refuse(connection, unfit, sender, places)
            # Labels of other senders for these texts are joined too, and stop counting as waiting.
            _join(connection, sorted(found, key=lambda m: (m.models == sender, m.received_at)))
            # To correct a label that waits takes no more room.
            if len(_missing(keys, found, sender)) > waiting_before:
                _check_room(connection, subject)
            if given_up():
                raise DatabaseUnavailable(RETRY_S)
        missing = {*_missing(keys, found, sender)}
        return sum((each.request_id, each.item) not in missing for each in labels)

    def join_waiting(self, within_s: float) -> int:
        """Join labels of the last ``within_s`` seconds whose predictions came after them.

        Returns how many. Takes no write lock if there are none.

        Raises:
            DatabaseUnavailable: The database cannot be reached, or is locked.

        """
        recent = feedback.c.received_at > self._clock() - within_s
        with self.database.reading() as connection:
            seen = connection.execute(_matches(recent).limit(_JOIN_BATCH)).all()
        if not seen:
            return 0
        with self.database.writing() as connection:
            found = [*_found(connection, sorted({(each.request_id, each.item) for each in seen}))]
            _join(connection, sorted(found, key=lambda m: m.received_at))
        return len(found)


def _check_room(connection: Connection, subject: str) -> None:
    """Raise RateLimited where more labels of this subject wait than may.

    It may have as many there as it leaves free for others (dynamic thresholds, as
    runners.batching.fairness.fits has them), so that whatever some hold, a new subject finds room.
    """
    own = connection.scalar(_COUNT_WAITING.where(feedback.c.sender == subject)) or 0
    free = MAX_WAITING - (connection.scalar(_COUNT_WAITING) or 0)
    share = min((own + free) // 2, MAX_WAITING_OF_SENDER)
    if own > share:
        raise RateLimited("feedback", max(share, 0), WAIT_S, _RETRY_S)


def _waiting_of(connection: Connection, keys: Sequence[Key], subject: str) -> int:
    """Return how many labels of a subject wait for one of these texts."""
    own = _COUNT_WAITING.where(feedback.c.sender == subject)
    return sum(connection.scalar(own.where(among)) or 0 for among in _among(keys))


def _keep(
    connection: Connection,
    labels: Sequence[tuple[Key, str]],
    sender: tuple[str, str],
    now: float,
) -> None:
    models, subject = sender
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    insert = dialect.insert(feedback)
    replaced = {
        name: insert.excluded[name] for name in ("label", "received_at", "joined", "sender")
    }
    connection.execute(
        insert.on_conflict_do_update(index_elements=[*feedback.primary_key], set_=replaced),
        [
            {
                "request_id": id_,
                "item": item,
                "models": models,
                "label": label,
                "received_at": now,
                "joined": False,
                "sender": subject,
            }
            for (id_, item), label in labels
        ],
    )


_other = predictions.alias("other")
_padded = " " + feedback.c.models + " "
_ALLOWED = or_(
    feedback.c.models == ALL,
    # Whether the names include the model's, by a function that both databases have.
    func.replace(_padded, " " + _other.c.model + " ", "") != _padded,
)
_KNOWN = (
    select(version_labels.c.label)
    .where(
        version_labels.c.model == _other.c.model,
        version_labels.c.version == _other.c.version,
        version_labels.c.label == feedback.c.label,
    )
    .correlate(_other, feedback)
    .exists()
)


def _to_latest(*which: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return the condition that joins a label to the latest prediction of its text.

    Only predictions that satisfy ``which`` count. Several may have one request id, which callers
    choose.
    """
    of_text = (_other.c.request_id == feedback.c.request_id, _other.c.item == feedback.c.item)
    latest = select(_other.c.id).where(*of_text, *which).order_by(_other.c.id.desc()).limit(1)
    return predictions.c.id == latest.correlate(feedback).scalar_subquery()


def _matches(which: ColumnElement[bool]) -> Any:  # noqa: ANN401  a Select of many columns
    """Select the waiting labels that have a matching prediction."""
    names = ("request_id", "item", "label", "models", "received_at")
    statement = select(*(feedback.c[name] for name in names), predictions.c.id)
    statement = statement.join_from(feedback, predictions, _to_latest(_ALLOWED, _KNOWN))
    # The condition and the order of the index kaiten_feedback_waiting.
    return statement.where(~feedback.c.joined, which).order_by(feedback.c.received_at.desc())


def _found(connection: Connection, keys: Sequence[Key]) -> Iterator[Match]:
    """Yield the matches of these texts, except rows that another transaction has locked."""
    for which in _among(keys):
        locked = _matches(which).with_for_update(of=feedback, skip_locked=True)
        yield from connection.execute(locked)


def _among(keys: Sequence[Key]) -> Iterator[ColumnElement[bool]]:
    of = tuple_(feedback.c.request_id, feedback.c.item)
    for start in range(0, len(keys), _KEY_BATCH):
        yield of.in_(keys[start : start + _KEY_BATCH])


def _missing(keys: Sequence[Key], found: Sequence[Match], sender: str) -> list[Key]:
    own = {(each.request_id, each.item) for each in found if each.models == sender}
    return [key for key in keys if key not in own]


def _refuse(
    connection: Connection, keys: Sequence[Key], sender: str, places: Mapping[Key, int]
) -> None:
    """Raise for texts whose models lack the label, or may not be labelled by the sender."""
    if not keys:
        return
    allowed = _answered(connection, keys, sender, _ALLOWED)
    if len(allowed) < len(keys):
        # The error does not name the model, which the sender may not know of.
        raise Forbidden("feedback")
    by_place = sorted((places[key], tag) for key, tag in allowed.items())
    raise InvalidInput(
        [
            Detail(f"feedback.{place}.label", f"is no label of {tag}, which answered")
            for place, tag in by_place[:_MAX_DETAILS]
        ]
    )


def _answered(
    connection: Connection, keys: Sequence[Key], sender: str, *which: ColumnElement[bool]
) -> dict[Key, str]:
    """Return the ``name:version`` that answered each text last, by key."""
    columns = (feedback.c.request_id, feedback.c.item, predictions.c.model, predictions.c.version)
    rows = select(*columns).join_from(feedback, predictions, _to_latest(*which))
    found: dict[Key, str] = {}
    for among in _among(keys):
        for id_, item, model, version in connection.execute(
            rows.where(among, feedback.c.models == sender)
        ):
            found[id_, item] = f"{model}:{version}"
    return found


def _join(connection: Connection, matches: Sequence[Match]) -> None:
    """Write labels into their predictions; of several for one prediction, the last counts."""
    if not matches:
        return
    truths = {each.id: each.label for each in matches}
    connection.execute(
        update(predictions)
        .where(predictions.c.id == bindparam("of"))
        .values(truth=bindparam("is")),
        [{"of": id_, "is": truths[id_]} for id_ in sorted(truths)],
    )
    key = (feedback.c.request_id, feedback.c.item, feedback.c.models)
    connection.execute(
        update(feedback)
        .where(*(column == bindparam(f"of_{column.name}") for column in key))
        .values(joined=True, sender=None),
        [{f"of_{column.name}": getattr(each, column.name) for column in key} for each in matches],
    )
