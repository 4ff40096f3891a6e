import pytest

from kaiten.errors import Forbidden, InvalidInput
from kaiten.quality import Label
from monitors.quality.database import Database
from monitors.quality.labels import Joined, Labels
from tests.unit.monitors.quality.house import kept, put, row, truths

NOW = 5000.0
KNOWN = {"intent:1.0.0": ["billing", "delivery"]}


@pytest.fixture
def labels(database: Database) -> Labels:
    return Labels(database, KNOWN, lambda: NOW)


def test_label_is_joined_to_its_prediction(database: Database, labels: Labels) -> None:
    put(database, row(request_id="a"), row(request_id="a", item=1), row(request_id="b"))
    labels.take([Label("a", 1, "delivery"), Label("b", 0, "billing")], None)
    assert truths(database) == [("a", 0, None), ("a", 1, "delivery"), ("b", 0, "billing")]
    assert kept(database) == {("a", 1): ("delivery", True), ("b", 0): ("billing", True)}


def test_label_that_comes_before_its_prediction_is_joined_later(
    database: Database, labels: Labels
) -> None:
    labels.take([Label("a", 0, "delivery"), Label("nothing", 0, "delivery")], None)
    assert labels.join_waiting() == Joined(0, 0)
    put(database, row(request_id="a"))
    assert labels.join_waiting() == Joined(1, 0)
    assert truths(database) == [("a", 0, "delivery")]
    assert labels.join_waiting() == Joined(0, 0)
    assert kept(database)["nothing", 0] == ("delivery", False)


def test_later_label_replaces_an_earlier_one(database: Database, labels: Labels) -> None:
    put(database, row(request_id="a"))
    labels.take([Label("a", 0, "delivery")], None)
    labels.take([Label("a", 0, "delivery"), Label("a", 0, "billing")], None)
    assert truths(database) == [("a", 0, "billing")]
    assert kept(database) == {("a", 0): ("billing", True)}


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
    assert kept(database) == {}


def test_any_label_is_taken_for_a_version_that_is_not_served_here(
    database: Database, labels: Labels
) -> None:
    put(database, row(request_id="a", version="2.0.0"))
    labels.take([Label("a", 0, "parcels")], None)
    assert truths(database) == [("a", 0, "parcels")]


def test_sender_labels_the_models_of_its_scope_only(database: Database, labels: Labels) -> None:
    put(database, row(request_id="a"), row(request_id="b", model="other"))
    labels.take([Label("a", 0, "billing")], frozenset({"intent"}))
    with pytest.raises(Forbidden) as refused:
        labels.take([Label("a", 0, "delivery"), Label("b", 0, "x")], frozenset({"intent"}))
    assert refused.value.scope == "feedback:other"
    assert truths(database) == [("a", 0, "billing"), ("b", 0, None)]


@pytest.mark.parametrize(
    ("label", "models"), [("parcels", None), ("billing", frozenset({"other", "another"}))]
)
def test_label_that_turns_out_not_to_fit_is_dropped(
    database: Database, labels: Labels, label: str, models: frozenset[str] | None
) -> None:
    labels.take([Label("a", 0, label), Label("b", 0, "billing")], models)
    put(database, row(request_id="a"), row(request_id="c"))
    assert labels.join_waiting() == Joined(0, 1)
    assert truths(database) == [("a", 0, None), ("c", 0, None)]
    assert set(kept(database)) == {("b", 0)}


def test_many_labels_are_taken_at_once(database: Database, labels: Labels) -> None:
    put(database, *(row(request_id=f"r{number}") for number in range(2500)))
    labels.take([Label(f"r{number}", 0, "delivery") for number in range(2500)], None)
    assert {truth for _, _, truth in truths(database)} == {"delivery"}
