"""Loaded by Schemathesis: keeps valid requests whose rejection is right out of what it judges.

A deadline of a few milliseconds is valid, and the 504 that it brings is right; but a 5xx all the
same, and none is to be passed over. So time limits that are shorter than a model needs are raised.

A text without a letter, digit, mark, punctuation or symbol is rejected: nothing in it is visible,
or the tokenizer's normaliser leaves nothing of it. No pattern can say so for every model.
"""

import unicodedata
from collections.abc import Iterator
from typing import Any

import schemathesis
from requests import PreparedRequest
from schemathesis.hooks import HookContext
from schemathesis.transport.prepare import get_exclude_headers

HEADER = "X-Request-Timeout-Ms"
ENOUGH_MS = 20_000


@schemathesis.hook
def filter_body(context: HookContext, body: object) -> bool:
    """Return whether every text of a body has a character that a model may read."""
    return all(not text or _is_readable(text) for text in _texts(body))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        yield from _texts([*value.values()])


def _is_readable(text: str) -> bool:
    return any(unicodedata.category(character)[0] in "LMNPS" for character in text)


@schemathesis.hook
def before_call(
    context: HookContext, case: "schemathesis.Case[Any]", kwargs: dict[str, Any]
) -> None:
    if get_exclude_headers(case):
        # A changed case would get the part that it must lack, so only the sent request is changed.
        kwargs["auth"] = _patient
    elif _is_short(case.headers.get(HEADER)):
        case.headers[HEADER] = str(ENOUGH_MS)


def _patient(request: PreparedRequest) -> PreparedRequest:
    if _is_short(request.headers.get(HEADER)):
        request.headers[HEADER] = str(ENOUGH_MS)
    return request


def _is_short(header: object) -> bool:
    value = str(header)
    return value.isascii() and value.isdigit() and 0 < int(value) < ENOUGH_MS
