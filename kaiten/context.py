"""The request at hand: made by the outermost middleware, filled in further in, read by logs."""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass

from kaiten import model_tags
from kaiten.errors import Forbidden


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls, by a verified token, and what the token allows."""

    subject: str
    scopes: frozenset[str]
    issuer: str = ""

    @property
    def identity(self) -> str:
        """Who it is, over all issuers: two may know different callers by one subject."""
        return f"{self.issuer}|{self.subject}"

    def require(self, scope: str) -> None:
        """Raise Forbidden unless the token holds the scope, be it for one model only."""
        if not any(own == scope or own.startswith(f"{scope}:") for own in self.scopes):
            raise Forbidden(scope)

    def require_prediction(self, model: str) -> None:
        """Raise Forbidden unless the token may ask this model (its name, without version)."""
        if not self.scopes & {"predict", f"predict:{model}"}:
            raise Forbidden(f"predict:{model}")

    @property
    def labelled_models(self) -> frozenset[str] | None:
        """The names of the models that the token may give labels for; None for all of them."""
        if "feedback" in self.scopes:
            return None
        own = (scope.partition(":") for scope in self.scopes)
        names = (name for kind, _, name in own if kind == "feedback")
        return frozenset(filter(model_tags.is_name, names))


@dataclass(slots=True)
class RequestContext:
    """What every layer may know of the current request."""

    request_id: str
    # The caller's trace, by W3C Trace Context; the route's path template, never a path that the
    # caller invented; and the address that the request came from.
    trace_id: str | None = None
    route: str | None = None
    client: str | None = None
    principal: Principal | None = None
    # Awaited with the tokens that a request costs before they are queued; raises to reject it.
    reserve: Callable[[int], Awaitable[None]] | None = None

    @property
    def subject(self) -> str:
        """Whose request it is, over all issuers; empty where that is not known."""
        return self.principal.identity if self.principal else ""


_current: ContextVar[RequestContext | None] = ContextVar("kaiten_request", default=None)


def bind(context: RequestContext) -> None:
    """Make this the request at hand, for the task that handles it and those it starts."""
    _current.set(context)


def current() -> RequestContext:
    """Return the request at hand; LookupError outside a request."""
    context = _current.get()
    if context is None:
        raise LookupError("no request is being handled")
    return context


def current_or_none() -> RequestContext | None:
    """Return the request at hand, or None outside a request."""
    return _current.get()
