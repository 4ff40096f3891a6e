"""Stores labels from feedback and joins them to their predictions.

To avoid deadlocks, a transaction that changes both tables locks rows of feedback first, and then
predictions in order of their ids.
"""

import time
from collections.abc import Callable, Iterator, Sequence
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
    """The labels that callers send, in the database."""

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

        Returns how many were joined; the others wait. The sender, the pseudonym ``subject``, may
        label ``models``, by name, None for all. ``given_up`` is called before the commit.

        Raises:
            InvalidInput: The version that answered a text does not have the label.
            Forbidden: The sender may not label the model that answered a text.
            RateLimited: Too many labels wait, of this sender or in all.
            DatabaseUnavailable: The database cannot be reached, or the sender has given up.

        """
        last = {(label.request_id, label.item): label.label for label in labels}
        # Sorted, so that concurrent senders lock rows in the same order and cannot deadlock.
        keys = sorted(last)
        sender = ALL if models is None else " ".join(sorted(models))
        with self.database.writing() as connection:
            waiting_before = _count_waiting(connection, keys, subject)
            _store(connection, [(key, last[key]) for key in keys], (sender, subject), self._clock())
            matches = [*_find_matches(connection, keys)]
            if answered := _find_answered(connection, _unmatched(keys, matches, sender), sender):
                # Looked up again: the prediction may have been written between the two queries.
                matches = [*_find_matches(connection, keys)]
                unfit = [key for key in _unmatched(keys, matches, sender) if key in answered]
                _reject(connection, unfit, sender, labels)
            # Labels of other senders for these texts are joined too, and stop counting as waiting.
            _join(connection, sorted(matches, key=lambda m: (m.models == sender, m.received_at)))
            if len(_unmatched(keys, matches, sender)) > waiting_before:
                _check_room(connection, subject)
            if given_up():
                raise DatabaseUnavailable(RETRY_S)
        unmatched = {*_unmatched(keys, matches, sender)}
        return sum((label.request_id, label.item) not in unmatched for label in labels)

    def join_waiting(self, within_s: float) -> int:
        """Join labels of the last ``within_s`` seconds whose predictions came after them.

        Returns how many. Takes no write lock if there are none.

        Raises:
            DatabaseUnavailable: The database cannot be reached, or is locked.

        """
        recent = feedback.c.received_at > self._clock() - within_s
        with self.database.reading() as connection:
            joinable = connection.execute(_select_matches(recent).limit(_JOIN_BATCH)).all()
        if not joinable:
            return 0
        keys = sorted({(match.request_id, match.item) for match in joinable})
        with self.database.writing() as connection:
            matches = [*_find_matches(connection, keys)]
            _join(connection, sorted(matches, key=lambda m: m.received_at))
        return len(matches)


def _check_room(connection: Connection, subject: str) -> None:
    """Check that a subject has no more labels waiting than it leaves free for others.

    By this dynamic threshold, as in runners.batching.fairness, a new subject always has room. It is
    not called for corrections of labels that wait, because they take no more room.

    Raises:
        RateLimited: Too many labels of the subject wait.

    """
    waiting = connection.scalar(_COUNT_WAITING.where(feedback.c.sender == subject)) or 0
    free = MAX_WAITING - (connection.scalar(_COUNT_WAITING) or 0)
    limit = min((waiting + free) // 2, MAX_WAITING_OF_SENDER)
    if waiting > limit:
        raise RateLimited("feedback", max(limit, 0), WAIT_S, _RETRY_S)


def _count_waiting(connection: Connection, keys: Sequence[Key], subject: str) -> int:
    """Return how many labels of a subject wait for one of these texts."""
    of_subject = _COUNT_WAITING.where(feedback.c.sender == subject)
    return sum(connection.scalar(of_subject.where(in_batch)) or 0 for in_batch in _in_batches(keys))


def _store(
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
_HAS_LABEL = (
    select(version_labels.c.label)
    .where(
        version_labels.c.model == _other.c.model,
        version_labels.c.version == _other.c.version,
        version_labels.c.label == feedback.c.label,
    )
    .correlate(_other, feedback)
    .exists()
)


def _to_latest(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return the condition that joins a label to the latest prediction of its text.

    Only predictions that satisfy the conditions count. Several may have one request id, which
    callers choose.
    """
    of_text = (_other.c.request_id == feedback.c.request_id, _other.c.item == feedback.c.item)
    latest = select(_other.c.id).where(*of_text, *conditions).order_by(_other.c.id.desc()).limit(1)
    return predictions.c.id == latest.correlate(feedback).scalar_subquery()


def _select_matches(condition: ColumnElement[bool]) -> Any:  # noqa: ANN401  a Select of many columns
    """Select the waiting labels that have a matching prediction."""
    names = ("request_id", "item", "label", "models", "received_at")
    statement = select(*(feedback.c[name] for name in names), predictions.c.id)
    statement = statement.join_from(feedback, predictions, _to_latest(_ALLOWED, _HAS_LABEL))
    # The condition and the order of the index kaiten_feedback_waiting.
    return statement.where(~feedback.c.joined, condition).order_by(feedback.c.received_at.desc())


def _find_matches(connection: Connection, keys: Sequence[Key]) -> Iterator[Match]:
    """Yield the matches of these texts, except rows that another transaction has locked."""
    for in_batch in _in_batches(keys):
        locked = _select_matches(in_batch).with_for_update(of=feedback, skip_locked=True)
        yield from connection.execute(locked)


def _in_batches(keys: Sequence[Key]) -> Iterator[ColumnElement[bool]]:
    """Yield conditions that a label is for one of the texts of a batch."""
    columns = tuple_(feedback.c.request_id, feedback.c.item)
    for start in range(0, len(keys), _KEY_BATCH):
        yield columns.in_(keys[start : start + _KEY_BATCH])


def _unmatched(keys: Sequence[Key], matches: Sequence[Match], sender: str) -> list[Key]:
    matched = {(match.request_id, match.item) for match in matches if match.models == sender}
    return [key for key in keys if key not in matched]


def _reject(
    connection: Connection, keys: Sequence[Key], sender: str, labels: Sequence[Label]
) -> None:
    """Raise the error of texts whose models lack the label, or are not the sender's to label."""
    if not keys:
        return
    allowed = _find_answered(connection, keys, sender, _ALLOWED)
    if len(allowed) < len(keys):
        # The error does not name the model, which the sender may not know of.
        raise Forbidden("feedback")
    positions = {(label.request_id, label.item): at for at, label in enumerate(labels)}
    by_position = sorted((positions[key], tag) for key, tag in allowed.items())
    raise InvalidInput(
        [
            Detail(f"feedback.{position}.label", f"is not a label of {tag}, which answered")
            for position, tag in by_position[:_MAX_DETAILS]
        ]
    )


def _find_answered(
    connection: Connection, keys: Sequence[Key], sender: str, *conditions: ColumnElement[bool]
) -> dict[Key, str]:
    """Return the tag of the model that answered each text last, by key."""
    columns = (feedback.c.request_id, feedback.c.item, predictions.c.model, predictions.c.version)
    rows = select(*columns).join_from(feedback, predictions, _to_latest(*conditions))
    tags: dict[Key, str] = {}
    for in_batch in _in_batches(keys):
        for id_, item, model, version in connection.execute(
            rows.where(in_batch, feedback.c.models == sender)
        ):
            tags[id_, item] = f"{model}:{version}"
    return tags


def _join(connection: Connection, matches: Sequence[Match]) -> None:
    """Write labels into their predictions; of several for one prediction, the last counts."""
    if not matches:
        return
    truths = {match.id: match.label for match in matches}
    connection.execute(
        update(predictions)
        .where(predictions.c.id == bindparam("prediction_id"))
        .values(truth=bindparam("true_label")),
        [{"prediction_id": id_, "true_label": truths[id_]} for id_ in sorted(truths)],
    )
    key = (feedback.c.request_id, feedback.c.item, feedback.c.models)
    connection.execute(
        update(feedback)
        .where(*(column == bindparam(f"of_{column.name}") for column in key))
        .values(joined=True, sender=None),
        [{f"of_{column.name}": getattr(match, column.name) for column in key} for match in matches],
    )
