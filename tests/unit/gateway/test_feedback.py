"""Labels, and what they say, by the routes; the desk behind them has tests of its own."""

from typing import Any

import pytest

from kaiten.errors import DatabaseUnavailable, Detail, Forbidden, InvalidInput
from kaiten.settings.models import FeedbackSettings
from tests.unit.gateway.house import (
    CANARY,
    LIMITS,
    QUALITIES,
    Desk,
    House,
    bearer,
    error_of,
    fields_of,
)

FEEDBACK = "/api/v2/feedback"
GOOD = {"request_id": "one", "item": 1, "label": "billing"}
SENDER = {"Authorization": bearer("feedback")}
OPERATOR = {"Authorization": bearer("ops")}


async def test_labels_are_handed_on_and_counted() -> None:
    house = House()
    other = {"request_id": "a.B-2_", "label": "no label of ours"}
    answer = await house.post(FEEDBACK, {"feedback": [GOOD, other]}, SENDER)
    assert answer.status_code == 200
    request_id = answer.headers["X-Request-ID"]
    assert answer.json() == {"accepted": 2, "joined": 1, "request_id": request_id}
    assert answer.headers["API-Version"] == "2"
    labels = [("one", 1, "billing"), ("a.B-2_", 0, "no label of ours")]
    assert house.desk.submissions == [(labels, None)]
    # It is a request like others, and no prediction.
    assert house.metrics.answered == [(FEEDBACK, "", 200)]
    assert house.events.emitted == []


@pytest.mark.parametrize(
    ("scopes", "models"),
    [
        (("feedback",), None),
        (("feedback", "feedback:intent"), None),
        (("feedback:intent", "predict"), {"intent"}),
        (("feedback:a", "feedback:b"), {"a", "b"}),
        # What an issuer writes otherwise names no model.
        (("feedback:a", "feedback:a b", "feedback:*", "feedback:"), {"a"}),
    ],
)
async def test_a_scope_tells_which_models_may_be_labelled(
    scopes: tuple[str, ...], models: set[str] | None
) -> None:
    house = House()
    headers = {"Authorization": bearer(*scopes)}
    assert (await house.post(FEEDBACK, {"feedback": [GOOD]}, headers)).status_code == 200
    assert [allowed for _, allowed in house.desk.submissions] == [models]


@pytest.mark.parametrize("scope", ["predict", "ops", "predict:feedback", "feedbacks", "feedback:*"])
async def test_another_scope_labels_nothing(scope: str) -> None:
    house = House()
    headers = {"Authorization": bearer(scope)}
    answer = await house.post(FEEDBACK, {"feedback": [GOOD]}, headers)
    assert (answer.status_code, error_of(answer)["code"]) == (403, "forbidden")
    assert house.desk.submissions == []


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({"request_id": f"{CANARY} "}, "feedback.1.request_id"),
        ({"request_id": "x" * 65}, "feedback.1.request_id"),
        ({"request_id": ""}, "feedback.1.request_id"),
        ({"request_id": "one\n"}, "feedback.1.request_id"),
        ({"item": -1}, "feedback.1.item"),
        ({"item": 2**40}, "feedback.1.item"),
        ({"item": "0"}, "feedback.1.item"),
        ({"label": " "}, "feedback.1.label"),
        ({"label": f"{CANARY}\0"}, "feedback.1.label"),
        ({"label": "x" * 1001}, "feedback.1.label"),
        ({"label": None}, "feedback.1.label"),
        ({"subject": CANARY}, "feedback.1.subject"),
    ],
)
async def test_what_is_no_label_is_named_and_not_quoted(item: dict[str, Any], field: str) -> None:
    house = House()
    answer = await house.post(FEEDBACK, {"feedback": [GOOD, GOOD | item]}, SENDER)
    assert answer.status_code == 422
    assert fields_of(answer) == [field]
    assert CANARY not in answer.text
    assert house.desk.submissions == []


@pytest.mark.parametrize("body", [{}, {"feedback": []}, {"feedback": [GOOD], "model": "intent"}])
async def test_another_body_is_refused(body: dict[str, Any]) -> None:
    assert (await House().post(FEEDBACK, body, SENDER)).status_code == 422


async def test_more_labels_than_inputs_are_refused() -> None:
    house = House()
    labels = [GOOD] * LIMITS.max_inputs
    assert (await house.post(FEEDBACK, {"feedback": labels}, SENDER)).status_code == 200
    answer = await house.post(FEEDBACK, {"feedback": [*labels, GOOD]}, SENDER)
    assert (answer.status_code, fields_of(answer)) == (422, ["feedback"])


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidInput([Detail("feedback.0.label", "is none")]), 422, "invalid_input"),
        (Forbidden("feedback:other"), 403, "forbidden"),
        (DatabaseUnavailable(2), 503, "database_unavailable"),
    ],
)
async def test_what_the_desk_refuses_is_answered(error: Exception, status: int, code: str) -> None:
    house = House(desk=Desk(error=error))
    answer = await house.post(FEEDBACK, {"feedback": [GOOD]}, SENDER)
    assert (answer.status_code, error_of(answer)["code"]) == (status, code)
    assert answer.headers.get("Retry-After") == ("2" if status == 503 else None)


async def test_quality_is_reported_to_operators() -> None:
    house = House(desk=Desk(qualities=QUALITIES))
    answer = await house.ask("GET", "/ops/quality", headers=OPERATOR)
    first, second = answer.json()["models"]
    assert first == {
        "model": "intent",
        "version": "1.0.0",
        "arm": "production",
        "labelled": 40,
        "first_at": "2026-11-01T00:00:00Z",
        "last_at": "2026-11-02T00:00:00Z",
        "accuracy": 0.9,
        "precision": 0.8,
        "recall": 0.7,
        "f1": 0.75,
        "estimate": {
            "accuracy": 0.88,
            "low": 0.85,
            "high": 0.91,
            "rows": 1000,
            "error": 0.01,
            "error_rows": 200,
            "error_windows": 5,
        },
        "report": "report",
        "reason": None,
        "observed_error": 0.02,
    }
    assert (second["version"], second["labelled"]) == ("2.0.0", 0)
    assert (second["report"], second["reason"]) == (None, "there is none")
    assert second["accuracy"] is second["estimate"] is second["first_at"] is None
    for headers in ({}, SENDER):
        refusal = await house.ask("GET", "/ops/quality", headers=headers)
        assert refusal.status_code == (403 if headers else 401)


async def test_what_is_not_kept_has_no_routes() -> None:
    house = House(feedback=FeedbackSettings(enabled=False))
    assert (await house.post(FEEDBACK, {"feedback": [GOOD]}, SENDER)).status_code == 404
    assert (await house.ask("GET", "/ops/quality", headers=OPERATOR)).status_code == 404
    document = (await house.ask("GET", "/docs.json")).json()
    assert not {FEEDBACK, "/ops/quality"} & set(document["paths"])
