"""The table that callers read is complete and true."""

from collections.abc import Sequence
from typing import Any

import pytest

from gateway.error_reference import REMEDIES, Retry, Row, rows, table
from gateway.errors import INTERNAL, STATUS_AND_CODE, error_response
from kaiten import errors
from kaiten.context import RequestContext, bind

# What to make an error of, where it takes something.
FACTS: dict[type[errors.KaitenError], Sequence[Any]] = {
    errors.MalformedBody: ["reason"],
    errors.InvalidInput: [[]],
    errors.UnknownApiVersion: [["1"]],
    errors.ApiVersionMismatch: ["reason"],
    errors.Forbidden: ["predict"],
    errors.UnknownModel: [["a:1.0.0"]],
    errors.MethodNotAllowed: [["POST"]],
    errors.BodyTooLarge: [1],
    errors.QueueFull: [1],
    errors.MalformedRequest: ["Host"],
    errors.BodyTimeout: [10],
    errors.RateLimited: ["requests", 1, 60, 1],
    errors.TooManyConcurrent: [1],
    errors.HeadersTooLarge: [1, "bytes"],
    errors.DeadlineExceeded: [1],
}


def example_of(error: type[errors.KaitenError]) -> errors.KaitenError:
    if error is errors.Unauthenticated:
        return errors.Unauthenticated("bearer token")
    return error(*FACTS.get(error, ()))


def test_every_code_has_a_remedy_and_no_other() -> None:
    assert set(REMEDIES) == {code for _, code in [*STATUS_AND_CODE.values(), INTERNAL]}


def test_every_failure_is_a_row() -> None:
    failures = [(row.status, row.code) for row in rows()]
    assert sorted(failures) == sorted([*STATUS_AND_CODE.values(), INTERNAL])
    assert [status for status, _ in failures] == sorted(status for status, _ in failures)


@pytest.mark.parametrize("row", [*rows()], ids=lambda row: row.code)
def test_a_row_is_written_in_full_sentences(row: Row) -> None:
    for text in (row.meaning, row.remedy.text):
        assert text.endswith(".")
        assert "|" not in text
        assert "\n" not in text
    assert f"| {row.status} | `{row.code}` | {row.meaning} | {row.remedy.text} |" in table()


@pytest.mark.parametrize("error", STATUS_AND_CODE, ids=lambda error: error.__name__)
def test_documented_headers_are_those_that_are_sent(
    error: type[errors.KaitenError],
) -> None:
    bind(RequestContext("id"))
    sent_headers = {name.lower() for name in error_response(example_of(error)).headers}
    documented_headers = {name.lower() for name in REMEDIES[STATUS_AND_CODE[error][1]].headers}
    # The last is about the connection, and not the answer.
    assert sent_headers - {"content-type", "content-length", "connection"} == documented_headers


def test_what_says_when_to_come_back_is_sent_again_then() -> None:
    for remedy in REMEDIES.values():
        assert (remedy.retry is Retry.AFTER) == ("Retry-After" in remedy.headers)
