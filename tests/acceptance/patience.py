"""Loaded by Schemathesis: callers who would wait for less time than a model takes, wait longer.

A deadline of a few milliseconds is valid, and the 504 that it brings is right; but a 5xx all the
same, and none is to be passed over.
"""

from typing import Any

import schemathesis
from schemathesis.hooks import HookContext
from schemathesis.transport.prepare import get_exclude_headers

HEADER = "X-Request-Timeout-Ms"
ENOUGH_MS = 20_000


@schemathesis.hook
def before_call(
    context: HookContext, case: "schemathesis.Case[Any]", kwargs: dict[str, Any]
) -> None:
    # A case that lacks a header is left alone: once changed, it would be given what it is to lack.
    asked = str(case.headers.get(HEADER, ""))
    short = asked.isascii() and asked.isdigit() and 0 < int(asked) < ENOUGH_MS
    if short and not get_exclude_headers(case):
        case.headers[HEADER] = str(ENOUGH_MS)
