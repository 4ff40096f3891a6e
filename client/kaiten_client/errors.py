"""Every error of a request, in one tree.

KaitenError
    ConnectionFailed       no answer came; the host, the network or TLS
    TimedOut               no answer within the request's deadline; or a 504
    InvalidRequest         400, 413, 415, 422 and other 4xx; details name the fields
    Unauthenticated        401
    Forbidden              403
    NotFound               404
        UnknownModel
    RateLimited            429
    Unavailable            503
    ServerError            any other 5xx
    UnexpectedAnswer       an answer that is not Kaiten's, such as a proxy's page or a redirect
        MismatchedAnswer   an answer for another request

A wrong argument of a client's constructor is a ValueError, as no request has begun.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Detail:
    """One thing that is wrong: the field's path, such as ``inputs.3``, and why."""

    field: str
    reason: str


class KaitenError(Exception):
    """The base: a sentence, and what is known of the answer.

    ``status`` and ``code`` are None where no answer came, or none in Kaiten's form. By
    ``request_id`` the server's log tells of the request. ``retry_after_s`` is what the server asked
    to wait, if it did. Neither a token nor a text that was sent is in any of them.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str = "",
        details: Sequence[Detail] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.request_id = request_id
        self.details = tuple(details)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        details = "; ".join(f"{each.field}: {each.reason}" for each in self.details)
        known = {"status": self.status, "code": self.code, "request": self.request_id}
        facts = ", ".join(f"{name} {value}" for name, value in known.items() if value)
        return " ".join(part for part in (self.message, details, facts and f"({facts})") if part)


class ConnectionFailed(KaitenError):
    """No answer came: the host, the network or TLS."""


class TimedOut(KaitenError):
    """No answer within the request's deadline, or within the server's own limit."""


class InvalidRequest(KaitenError):
    """The server does not take the request as it is; details name the fields."""


class Unauthenticated(KaitenError):
    """No token or API key, or one that does not hold."""


class Forbidden(KaitenError):
    """The token holds, but not for this."""


class NotFound(KaitenError):
    """There is no such thing at this URL."""


class UnknownModel(NotFound):
    """The model asked for is not served here; details name those that are."""


class RateLimited(KaitenError):
    """Too much at once; ``retry_after_s`` says when to come back."""


class Unavailable(KaitenError):
    """The server can not answer now: it starts, stops or is overloaded."""


class ServerError(KaitenError):
    """The server failed."""


class UnexpectedAnswer(KaitenError):
    """The answer is not Kaiten's: not JSON, not the schema, or a redirect."""


class MismatchedAnswer(UnexpectedAnswer):
    """The answer names another request, or has another number of results than were asked for."""
