import copy
import json
from typing import Any

import httpx
import pytest

from kaiten_client import (
    Forbidden,
    InvalidRequest,
    KaitenError,
    NotFound,
    PredictResponse,
    RateLimited,
    ServerError,
    TimedOut,
    Unauthenticated,
    Unavailable,
    UnexpectedAnswer,
    UnknownModel,
)
from kaiten_client.replies import Reply, error_from_reply, read_feedback, read_predictions
from tests.unit.client.house import GOOD, failure

DATE = "Wed, 25 Nov 2026 10:00:00 GMT"
LATER = "Wed, 25 Nov 2026 10:00:07 GMT"
EPOCH_S = 1795600800.0


def reply(answer: httpx.Response) -> Reply:
    return Reply(answer.status_code, answer.headers, answer.content, EPOCH_S)


def error(answer: httpx.Response) -> KaitenError:
    raised = error_from_reply(reply(answer), "own")
    assert raised is not None
    return raised


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "malformed_body", InvalidRequest),
        (401, "unauthenticated", Unauthenticated),
        (403, "forbidden", Forbidden),
        (404, "not_found", NotFound),
        (404, "unknown_model", UnknownModel),
        (405, "method_not_allowed", InvalidRequest),
        (413, "body_too_large", InvalidRequest),
        (415, "unsupported_content_type", InvalidRequest),
        (422, "invalid_input", InvalidRequest),
        (429, "queue_full", RateLimited),
        (500, "internal_error", ServerError),
        (502, "of_tomorrow", ServerError),
        (503, "not_ready", Unavailable),
        (504, "deadline_exceeded", TimedOut),
    ],
)
def test_each_error_has_its_class_and_facts(
    status: int, code: str, kind: type[KaitenError]
) -> None:
    details = [{"field": "inputs.1", "reason": "is empty"}]
    raised = error(failure(status, code, details=details, new="field"))
    assert type(raised) is kind
    assert (raised.status, raised.code, raised.request_id) == (status, code, "served")
    assert raised.message == "It failed."
    assert [(detail.field, detail.reason) for detail in raised.details] == [
        ("inputs.1", "is empty")
    ]


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, NotFound), (413, InvalidRequest), (502, ServerError), (503, Unavailable)],
)
@pytest.mark.parametrize("content", [b"<html>canary</html>", b'{"error": "canary"}', b"\xff"])
def test_a_failure_that_a_proxy_words_has_a_class_and_no_code(
    status: int, kind: type[KaitenError], content: bytes
) -> None:
    raised = error(httpx.Response(status, content=content))
    assert type(raised) is kind
    assert (raised.status, raised.code, raised.request_id) == (status, None, "own")
    assert "canary" not in str(raised)


def test_the_servers_id_is_taken() -> None:
    assert error(httpx.Response(502, headers={"X-Request-ID": "theirs"})).request_id == "theirs"


@pytest.mark.parametrize("status", [201, 204, 302, 308])
def test_another_status_is_unexpected(status: int) -> None:
    raised = error(httpx.Response(status, headers={"Location": "https://canary.example"}))
    assert type(raised) is UnexpectedAnswer
    assert raised.status == status
    assert "canary" not in str(raised)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "3"}, 3),
        ({"Retry-After": " 0 "}, 0),
        ({"Retry-After": "-3"}, None),
        ({"Retry-After": "3.5"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "Mon, 99 Foo 2026 10:00:00 GMT"}, None),
        ({"Retry-After": "Wed, 25 Nov 99999999999999999999 10:00:00 GMT"}, None),
        ({"Retry-After": LATER, "Date": DATE}, 7),
        ({"Retry-After": DATE, "Date": LATER}, 0),
        # Without the server's own time, the caller's.
        ({"Retry-After": LATER}, 7),
        # The caller's clock is 3 seconds before the server's.
        ({"Retry-After": LATER, "Date": "Wed, 25 Nov 2026 10:00:03 GMT"}, 4),
    ],
)
def test_retry_after_is_read(headers: dict[str, str], seconds: float | None) -> None:
    assert error(failure(429, headers=headers)).retry_after_s == seconds


def read(content: bytes | dict[str, Any], count: int = 1) -> PredictResponse:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    headers = {"Content-Type": "text/html; charset=utf-8", "X-Request-ID": "theirs"}
    return read_predictions(reply(httpx.Response(200, content=raw, headers=headers)), "own", count)


def test_new_fields_are_ignored() -> None:
    added = copy.deepcopy(GOOD) | {"new": 1}
    added["predictions"][0]["new"] = {}
    assert read(added) == read(GOOD)


def test_answers_are_frozen() -> None:
    answer = read(GOOD)
    with pytest.raises(ValueError, match="frozen"):
        answer.predictions[0].label = "other"  # type: ignore[misc]
    assert hash(answer) == hash(read(GOOD))


@pytest.mark.parametrize(
    "content",
    [
        b"<html>canary</html>",
        b"",
        b"[]",
        b'{"canary": 1}',
        {**GOOD, "model": 1},
        {**GOOD, "predictions": [{"label": "canary", "index": "1", "score": 0.5, "top_k": []}]},
        {**GOOD, "predictions": [{"label": "canary", "index": 1, "score": 0.5}]},
    ],
)
def test_response_of_another_schema_is_unexpected(content: bytes | dict[str, Any]) -> None:
    with pytest.raises(UnexpectedAnswer, match="text/html") as raised:
        read(content)
    assert (raised.value.status, raised.value.request_id) == (200, "theirs")
    assert "canary" not in str(raised.value)
    # Nor by the trace: pydantic's error quotes the answer.
    assert raised.value.__suppress_context__


@pytest.mark.parametrize("content", [b"", b"[]", b'{"accepted": "2", "request_id": "theirs"}'])
def test_feedback_response_without_all_labels_is_unexpected(content: bytes) -> None:
    answer = httpx.Response(200, content=content)
    with pytest.raises(UnexpectedAnswer):
        read_feedback(reply(answer), "own", 2)


def test_fewer_labels_than_were_sent_are_unexpected() -> None:
    answer = httpx.Response(200, json={"accepted": 1, "joined": 0, "request_id": "theirs"})
    with pytest.raises(UnexpectedAnswer, match="1 accepted of 2 labels"):
        read_feedback(reply(answer), "own", 2)
    assert read_feedback(reply(answer), "own", 1).joined == 0


def test_answers_for_other_inputs_are_unexpected() -> None:
    with pytest.raises(UnexpectedAnswer, match="1 predictions for 2 inputs"):
        read(GOOD, count=2)
