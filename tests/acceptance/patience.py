"""Loaded by Schemathesis: callers who would wait for less time than a model takes, wait longer.

A deadline of a few milliseconds is valid, and the 504 that it brings is right; but a 5xx all the
same, and none is to be passed over.
"""

from typing import Any

import schemathesis
from requests import PreparedRequest
from schemathesis.hooks import HookContext
from schemathesis.transport.prepare import get_exclude_headers

HEADER = "X-Request-Timeout-Ms"
ENOUGH_MS = 20_000


@schemathesis.hook
def before_call(
    context: HookContext, case: "schemathesis.Case[Any]", kwargs: dict[str, Any]
) -> None:
    if get_exclude_headers(case):
        # Once changed, it would be given what it is to lack; so only what is sent is.
        kwargs["auth"] = _patient
    elif _is_short(case.headers.get(HEADER)):
        case.headers[HEADER] = str(ENOUGH_MS)


def _patient(request: PreparedRequest) -> PreparedRequest:
    if _is_short(request.headers.get(HEADER)):
        request.headers[HEADER] = str(ENOUGH_MS)
    return request


def _is_short(header: object) -> bool:
    asked = str(header)
    return asked.isascii() and asked.isdigit() and 0 < int(asked) < ENOUGH_MS
