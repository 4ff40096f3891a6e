"""The context of the current request, which middleware, handlers and logs share."""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass

from kaiten import model_tags
from kaiten.errors import Forbidden

# The scopes that a credential may have for one model only, as in predict:NAME.
_SCOPES_OF_A_MODEL = frozenset({"predict", "feedback"})


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller of a verified credential, and the scopes of the credential."""

    subject: str
    scopes: frozenset[str]
    issuer: str = ""

    @property
    def identity(self) -> str:
        """The subject, unique over all issuers: two issuers may use the same ``sub``."""
        return f"{self.issuer}|{self.subject}"

    def require(self, scope: str) -> None:
        """Raise Forbidden unless the credential has the scope, possibly for one model only."""
        if scope in self.scopes:
            return
        names_models = scope in _SCOPES_OF_A_MODEL
        if not (names_models and any(held.startswith(f"{scope}:") for held in self.scopes)):
            raise Forbidden(scope)

    def may_predict(self, model_tag: str) -> bool:
        """Return whether the credential allows predictions by a version of a model."""
        return bool(self.scopes & {"predict", f"predict:{model_tags.split(model_tag)[0]}"})

    def require_prediction(self, model_tag: str) -> None:
        """Raise Forbidden unless the credential allows predictions by a version of a model."""
        if not self.may_predict(model_tag):
            raise Forbidden(f"predict:{model_tags.split(model_tag)[0]}")

    @property
    def labelled_models(self) -> frozenset[str] | None:
        """The names of the models that the credential may send feedback for; None for all."""
        if "feedback" in self.scopes:
            return None
        scopes = (scope.partition(":") for scope in self.scopes)
        names = (model for action, _, model in scopes if action == "feedback")
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
        """The subject of the request, empty before authentication."""
        return self.principal.identity if self.principal else ""


_current: ContextVar[RequestContext | None] = ContextVar("kaiten_request", default=None)


def bind(context: RequestContext) -> None:
    """Set the context of the current task and of those that it starts."""
    _current.set(context)


def current() -> RequestContext:
    """Return the context of the current request; LookupError outside a request."""
    context = _current.get()
    if context is None:
        raise LookupError("no request is being handled")
    return context


def current_or_none() -> RequestContext | None:
    """Return the context of the current request, or None outside a request."""
    return _current.get()
