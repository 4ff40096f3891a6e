"""When the answer to a request is due: from when it was received, by how long its caller waits."""

import time

from starlette.datastructures import Headers
from starlette.types import Scope

from gateway.access import ROUTES
from kaiten.errors import Detail, InvalidInput

HEADER = "X-Request-Timeout-Ms"
MAX_DIGITS = 9
# The scope's key for when the worker read the request's head, by time.monotonic().
RECEIVED = "kaiten.received"


def deadline(scope: Scope, limit_s: float) -> float:
    """Return when the request is due, by time.monotonic().

    That is ``limit_s`` seconds after it was received, or, on a model's route, what the caller asks
    for in X-Request-Timeout-Ms if that is less. InvalidInput for a header that is no number.
    """
    received: float = scope.get(RECEIVED) or time.monotonic()
    access = ROUTES.get(scope["path"])
    # Elsewhere anybody could ask for work, on a thread that no deadline ends, and not wait.
    heeded = access is not None and access.model_route
    return received + _limit_s(Headers(scope=scope).get(HEADER) if heeded else None, limit_s)


def _limit_s(asked: str | None, limit_s: float) -> float:
    if asked is None:
        return limit_s
    digits = asked.isascii() and asked.isdigit() and len(asked) <= MAX_DIGITS
    if not digits or int(asked) == 0:
        reason = "is no whole number of milliseconds from 1 to 999999999"
        raise InvalidInput([Detail(HEADER, reason)])
    return min(limit_s, int(asked) / 1000)
