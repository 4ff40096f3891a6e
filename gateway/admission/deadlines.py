"""When the answer to a request is due: from when it was received, by how long its caller waits."""

import time

from starlette.types import Scope

from gateway.routes import RouteKind, RouteSpec
from kaiten.errors import Detail, InvalidInput

HEADER = "X-Request-Timeout-Ms"
MAX_DIGITS = 9
# The scope's key for when the worker read the request's head, by time.monotonic().
RECEIVED = "kaiten.received"
_RAW_HEADER = HEADER.lower().encode()


def request_deadline(scope: Scope, spec: RouteSpec | None, limit_s: float) -> float:
    """Return when the request is due, by time.monotonic().

    That is ``limit_s`` seconds after it was received, or, on a model's route, what the caller asks
    for in X-Request-Timeout-Ms if that is less.

    Raises:
        InvalidInput: The header is not a number.

    """
    received: float = scope.get(RECEIVED) or time.monotonic()
    # On other routes, anyone could start work on a thread that no deadline ends, and not wait.
    if spec is not None and spec.kind is RouteKind.MODEL:
        for name, value in scope["headers"]:
            if name == _RAW_HEADER:
                return received + min(limit_s, _requested_s(value))
    return received + limit_s


def _requested_s(value: bytes) -> float:
    if not value.isdigit() or len(value) > MAX_DIGITS or int(value) == 0:
        reason = "is not a whole number of milliseconds from 1 to 999999999"
        raise InvalidInput([Detail(HEADER, reason)])
    return int(value) / 1000
