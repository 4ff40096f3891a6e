"""One request and its answer, as they pass through the middleware."""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.types import Scope

from gateway.routes import RouteMatch, RouteSpec
from kaiten.context import Principal, RequestContext
from kaiten.errors import KaitenError, Unauthenticated
from kaiten.events import PredictionEvent

_KEY = "kaiten.exchange"
# Nothing was answered: the server itself ended the request.
NO_ANSWER = 499


@dataclass(slots=True)
class Exchange(RequestContext):
    """What the gateway knows of a request and of its answer; filled in on the way inwards."""

    match: RouteMatch | None = None
    # Found outside the error middleware, and raised inside it.
    version_error: KaitenError | None = None
    # When the answer is due, by time.monotonic(), and when a rejected caller may retry.
    deadline: float = math.inf
    retry_after_s: int = 1
    # As Content-Length says; 0 without one.
    declared_bytes: int = 0
    body: bytes = b""
    model_tag: str = ""
    # Emitted once the request is answered.
    events: list[PredictionEvent] = field(default_factory=list)
    # Of the answer. ``before_answer`` is awaited with the exchange, before the first message is
    # sent. It must not hold the exchange itself: a reference cycle keeps each request, with its
    # texts, until the next full garbage collection.
    before_answer: "Callable[[Exchange], Awaitable[None]] | None" = None
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    started: bool = False
    status: int = NO_ANSWER

    @property
    def spec(self) -> RouteSpec | None:
        """The request's route, None for an unknown path."""
        return self.match.spec if self.match is not None else None

    @property
    def caller(self) -> Principal:
        """The authenticated caller.

        Raises:
            Unauthenticated: No caller was authenticated.

        """
        if self.principal is None:
            raise Unauthenticated
        return self.principal


def exchange_of(scope: Scope) -> Exchange:
    """Return the exchange that RequestContextMiddleware put into the scope."""
    exchange: Exchange = scope[_KEY]
    return exchange


def add_exchange(scope: Scope, exchange: Exchange) -> None:
    """Put the exchange into the scope, for every middleware further in."""
    scope[_KEY] = exchange
