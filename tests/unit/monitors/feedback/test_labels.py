from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from sqlalchemy import select

from kaiten.errors import DatabaseUnavailable, Forbidden, InvalidInput, RateLimited
from kaiten.feedback import Label
from monitors.feedback.database import Database
from monitors.feedback.labels import WAIT_S, Labels
from monitors.feedback.tables import feedback
from tests.unit.monitors.feedback.house import put, put_version_labels, row, stored_feedback, truths

NOW = 5000.0
INTENT, OTHER = frozenset({"intent"}), frozenset({"other", "another"})


@pytest.fixture
def labels(database: Database) -> Labels:
    put_version_labels(database)
    return Labels(database, lambda: NOW)


def test_label_is_joined_to_its_prediction(database: Database, labels: Labels) -> None:
    put(database, row(request_id="a"), row(request_id="a", item=1), row(request_id="b"))
    assert labels.take([Label("a", 1, "delivery"), Label("b", 0, "billing")], None) == 2
    assert truths(database) == [("a", 0, None), ("a", 1, "delivery"), ("b", 0, "billing")]
    assert stored_feedback(database) == {("a", 1): ("delivery", True), ("b", 0): ("billing", True)}


def test_label_that_comes_before_its_prediction_is_joined_later(
    database: Database, labels: Labels
) -> None:
    assert labels.take([Label("a", 0, "delivery"), Label("nothing", 0, "delivery")], None) == 0
    assert labels.join_waiting(WAIT_S) == 0
    put(database, row(request_id="a"))
    assert Labels(database, lambda: NOW + 60).join_waiting(60) == 0
    assert labels.join_waiting(60) == 1
    assert truths(database) == [("a", 0, "delivery")]
    assert labels.join_waiting(WAIT_S) == 0
    assert stored_feedback(database)["nothing", 0] == ("delivery", False)


def test_later_label_replaces_an_earlier_one(database: Database, labels: Labels) -> None:
    put(database, row(request_id="a"))
    labels.take([Label("a", 0, "delivery")], None)
    labels.take([Label("a", 0, "delivery"), Label("a", 0, "billing")], None)
    assert truths(database) == [("a", 0, "billing")]
    assert stored_feedback(database) == {("a", 0): ("billing", True)}


def test_of_two_predictions_of_one_id_the_later_counts(database: Database, labels: Labels) -> None:
    put(database, row(request_id="a"), row(request_id="a"))
    labels.take([Label("a", 0, "delivery")], None)
    assert truths(database) == [("a", 0, None), ("a", 0, "delivery")]


def test_label_that_the_version_has_not_is_refused_with_all_others(
    database: Database, labels: Labels
) -> None:
    put(database, row(request_id="a"), row(request_id="b"))
    with pytest.raises(InvalidInput) as refused:
        labels.take([Label("a", 0, "billing"), Label("b", 0, "parcels")], None)
    assert [detail.field for detail in refused.value.details] == ["feedback.1.label"]
    assert "parcels" not in str(refused.value.details)
    assert truths(database) == [("a", 0, None), ("b", 0, None)]
    assert stored_feedback(database) == {}


def test_label_is_held_to_those_of_a_version_that_another_host_serves(
    database: Database, labels: Labels
) -> None:
    put(database, row(request_id="a", version="2.0.0"), row(request_id="b", version="3.0.0"))
    put_version_labels(database, "intent:2.0.0", "parcels")
    labels.take([Label("a", 0, "parcels")], None)
    # The labels of the third version are unknown.
    for unfit in (Label("a", 0, "billing"), Label("b", 0, "billing")):
        with pytest.raises(InvalidInput):
            labels.take([unfit], None)
    assert truths(database) == [("a", 0, "parcels"), ("b", 0, None)]


def test_sender_labels_the_models_of_its_scope_only(database: Database, labels: Labels) -> None:
    put(database, row(request_id="a"), row(request_id="b", model="secret"))
    labels.take([Label("a", 0, "billing")], INTENT)
    with pytest.raises(Forbidden) as refused:
        labels.take([Label("a", 0, "delivery"), Label("b", 0, "x")], INTENT)
    assert refused.value.scope == "feedback"
    assert "secret" not in refused.value.message
    assert truths(database) == [("a", 0, "billing"), ("b", 0, None)]


@pytest.mark.parametrize("models", [None, INTENT])
def test_another_model_that_answers_by_the_same_id_is_in_nobodys_way(
    database: Database, labels: Labels, models: frozenset[str] | None
) -> None:
    put_version_labels(database, "other:1.0.0", "parcels")
    put(database, row(request_id="a"), row(request_id="a", model="other"))
    assert labels.take([Label("a", 0, "delivery")], models) == 1
    assert truths(database) == [("a", 0, "delivery"), ("a", 0, None)]


def test_name_that_holds_another_is_not_it(database: Database, labels: Labels) -> None:
    put_version_labels(database, "tent:1.0.0", "billing")
    put(database, row(request_id="a", model="tent"))
    with pytest.raises(Forbidden):
        labels.take([Label("a", 0, "billing")], INTENT)


@pytest.mark.parametrize(("label", "models"), [("parcels", None), ("billing", OTHER)])
def test_label_that_turns_out_not_to_fit_counts_for_nothing(
    database: Database, labels: Labels, label: str, models: frozenset[str] | None
) -> None:
    labels.take([Label("a", 0, label), Label("b", 0, "billing")], models)
    put(database, row(request_id="a"), row(request_id="c"))
    assert labels.join_waiting(WAIT_S) == 0
    assert truths(database) == [("a", 0, None), ("c", 0, None)]


def test_label_that_waits_is_not_replaced_by_one_for_other_models(
    database: Database, labels: Labels
) -> None:
    labels.take([Label("a", 0, "delivery")], INTENT)
    labels.take([Label("a", 0, "billing")], OTHER)
    put(database, row(request_id="a"))
    assert labels.join_waiting(WAIT_S) == 1
    assert truths(database) == [("a", 0, "delivery")]


@pytest.mark.parametrize("before_correction", [False, True])
def test_of_two_senders_who_may_the_later_counts(
    database: Database, labels: Labels, *, before_correction: bool
) -> None:
    labels.take([Label("a", 0, "delivery")], INTENT)
    if before_correction:
        put(database, row(request_id="a"))
    Labels(database, lambda: NOW + 1).take([Label("a", 0, "billing")], None)
    if not before_correction:
        put(database, row(request_id="a"))
    labels.join_waiting(WAIT_S)
    assert truths(database) == [("a", 0, "billing")]


def test_label_that_was_refused_is_taken_once_it_is_corrected(
    database: Database, labels: Labels
) -> None:
    put(database, row(request_id="a"))
    labels.take([Label("a", 0, "delivery")], None)
    with pytest.raises(InvalidInput):
        labels.take([Label("a", 0, "parcels")], None)
    assert stored_feedback(database) == {("a", 0): ("delivery", True)}
    labels.take([Label("a", 0, "billing")], None)
    assert truths(database) == [("a", 0, "billing")]


def test_sender_who_has_given_up_leaves_nothing(database: Database, labels: Labels) -> None:
    put(database, row(request_id="a"))
    with pytest.raises(DatabaseUnavailable):
        labels.take([Label("a", 0, "delivery")], None, lambda: True)
    assert stored_feedback(database) == {}
    assert truths(database) == [("a", 0, None)]


def test_senders_and_the_watch_hold_up_nobody_and_the_last_that_was_taken_counts(
    database: Database, labels: Labels
) -> None:
    texts = [f"r{number:03}" for number in range(200)]

    def send(models: frozenset[str] | None) -> None:
        for label in ["billing", "delivery"] * 5:
            labels.take([Label(text, 0, label) for text in texts], models)

    with ThreadPoolExecutor(4) as pool:
        # Each waits for its prediction when the watch comes.
        futures: list[Future[object]] = [pool.submit(send, models) for models in (None, INTENT)]
        put(database, *(row(request_id=text) for text in reversed(texts)))
        futures += [pool.submit(labels.join_waiting, WAIT_S) for _ in range(10)]
        for future in futures:
            future.result(60)
    assert {truth for _, _, truth in truths(database)} == {"delivery"}


def test_watch_leaves_a_label_that_is_being_corrected(database: Database, labels: Labels) -> None:
    if database._url.get_backend_name() == "sqlite":
        pytest.skip("SQLite lets one write at a time")
    labels.take([Label("a", 0, "billing")], None)
    put(database, row(request_id="a"))
    row_lock = select(feedback).with_for_update()
    with database.writing() as connection:
        connection.execute(row_lock)
        assert labels.join_waiting(WAIT_S) == 0
    assert labels.join_waiting(WAIT_S) == 1


def test_many_labels_are_taken_at_once(database: Database, labels: Labels) -> None:
    put(database, *(row(request_id=f"r{number}") for number in range(2500)))
    labels.take([Label(f"r{number}", 0, "delivery") for number in range(2500)], None)
    assert {truth for _, _, truth in truths(database)} == {"delivery"}


def test_of_many_labels_that_do_not_fit_the_first_twenty_are_reported(
    database: Database, labels: Labels
) -> None:
    put(database, *(row(request_id="a", item=item) for item in range(30)))
    with pytest.raises(InvalidInput) as refused:
        labels.take([Label("a", item, "parcels") for item in reversed(range(30))], None)
    assert [detail.field for detail in refused.value.details] == [
        f"feedback.{place}.label" for place in range(20)
    ]


def waiting_labels(number: int, count: int) -> list[Label]:
    return [Label(f"r{number}", item, "billing") for item in range(count)]


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitors.feedback.labels.MAX_WAITING_OF_SENDER", 10)
    monkeypatch.setattr("monitors.feedback.labels.MAX_WAITING", 50)


@pytest.mark.usefixtures("small_limits")
def test_labels_that_wait_are_bounded_by_sender(database: Database, labels: Labels) -> None:
    assert labels.take(waiting_labels(97, 10), None, subject="a") == 0
    with pytest.raises(RateLimited):
        labels.take(waiting_labels(0, 1), None, subject="a")
    # To correct one that waits takes no more room.
    assert labels.take(waiting_labels(97, 1), None, subject="a") == 0
    # Labels of known predictions are always accepted, and joined ones make room.
    put(
        database,
        row(request_id="known"),
        *(row(request_id="r97", item=number) for number in range(10)),
    )
    assert labels.take([Label("known", 0, "billing")], None, subject="a") == 1
    assert labels.join_waiting(WAIT_S) == 10
    assert labels.take(waiting_labels(1, 10), None, subject="a") == 0


@pytest.mark.usefixtures("small_limits")
def test_labels_that_wait_leave_room_for_those_of_a_new_sender(
    database: Database, labels: Labels
) -> None:
    accepted_counts: list[int] = []
    for sender in "abcdefg":
        for count in range(100):
            try:
                labels.take([Label(sender, count, "billing")], None, subject=sender)
            except RateLimited:
                accepted_counts.append(count)
                break
    # The cap for each of the first four, then half of the rest.
    assert accepted_counts == [10, 10, 10, 10, 5, 2, 1]
    assert len(stored_feedback(database)) == sum(accepted_counts)
    # A correction adds none, also where its sender holds more than is free by now.
    assert labels.take([Label("a", 0, "delivery")], None, subject="a") == 0
    # All or none of a request.
    with pytest.raises(RateLimited):
        labels.take(waiting_labels(0, 2), None, subject="h")
    assert labels.take(waiting_labels(0, 1), None, subject="h") == 0


def test_sender_is_known_only_while_its_label_waits(database: Database, labels: Labels) -> None:
    labels.take([Label("request-1", 0, "billing")], None, subject="a")
    put(database, row())
    labels.join_waiting(WAIT_S)
    with database.reading() as connection:
        assert connection.scalars(select(feedback.c.sender)).all() == [None]
