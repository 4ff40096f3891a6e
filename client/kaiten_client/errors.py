"""The errors of a request, in one tree.

KaitenError
    ConnectionFailed       no response: the host, the network or TLS failed
    TimedOut               no response before the request's deadline, or a 504
    InvalidRequest         400, 413, 415, 422 and other 4xx; details name the fields
    Unauthenticated        401
    Forbidden              403
    NotFound               404
        UnknownModel
    RateLimited            429
    Unavailable            503
    ServerError            any other 5xx
    UnexpectedAnswer       a response that is not Kaiten's, such as a proxy's page or a redirect
        MismatchedAnswer   a response for another request

An invalid argument of a client's constructor is a ValueError.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Detail:
    """A problem: the field, such as ``inputs.3``, and the reason."""

    field: str
    reason: str


class KaitenError(Exception):
    """The base of all errors, with the facts of the response.

    ``status`` and ``code`` are None if there was no response, or none in Kaiten's form. The server
    logs the request under ``request_id``. ``retry_after_s`` is the wait that the server asks for,
    if any. No field contains a token or an input text.
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
        details = "; ".join(f"{detail.field}: {detail.reason}" for detail in self.details)
        values = {"status": self.status, "code": self.code, "request": self.request_id}
        facts = ", ".join(f"{name} {value}" for name, value in values.items() if value)
        return " ".join(part for part in (self.message, details, facts and f"({facts})") if part)


class ConnectionFailed(KaitenError):
    """There was no response: the host, the network or TLS failed."""


class TimedOut(KaitenError):
    """There was no response before the request's deadline or the server's own time limit."""


class InvalidRequest(KaitenError):
    """The server rejected the request as invalid; details name the fields."""


class Unauthenticated(KaitenError):
    """The token or API key is missing or not valid."""


class Forbidden(KaitenError):
    """The token is valid, but lacks a scope."""


class NotFound(KaitenError):
    """Nothing exists at this URL."""


class UnknownModel(NotFound):
    """The server does not serve the requested model; details name the served models."""


class RateLimited(KaitenError):
    """A limit is reached; ``retry_after_s`` is the time to wait."""


class Unavailable(KaitenError):
    """The server is temporarily unavailable: it starts, stops or is overloaded."""


class ServerError(KaitenError):
    """The server failed."""


class UnexpectedAnswer(KaitenError):
    """The response is not Kaiten's: not JSON, not the schema, or a redirect."""


class MismatchedAnswer(UnexpectedAnswer):
    """The response names another request, or has a wrong number of results."""
