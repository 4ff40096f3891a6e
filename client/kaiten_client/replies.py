"""Parses responses into results or errors. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import mktime_tz, parsedate_tz
from http import HTTPStatus
from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from kaiten_client.answers import FeedbackResponse, PredictResponse
from kaiten_client.errors import (
    ConnectionFailed,
    Detail,
    Forbidden,
    InvalidRequest,
    KaitenError,
    MismatchedAnswer,
    NotFound,
    RateLimited,
    ServerError,
    TimedOut,
    Unauthenticated,
    Unavailable,
    UnexpectedAnswer,
    UnknownModel,
)

AnswerT = TypeVar("AnswerT", bound=BaseModel)
_BY_STATUS: Mapping[int, type[KaitenError]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    408: TimedOut,
    429: RateLimited,
    503: Unavailable,
    504: TimedOut,
}
_BY_CODE: Mapping[str | None, type[KaitenError]] = {"unknown_model": UnknownModel}


@dataclass(frozen=True, slots=True)
class Reply:
    """A raw response, received at ``received_at`` seconds since the epoch."""

    status: int
    headers: httpx.Headers
    content: bytes = field(repr=False)
    received_at: float

    def request_id_or(self, default: str) -> str:
        """Return the request id in the response, or the default."""
        return self.headers.get("X-Request-ID") or default


class ErrorBody(BaseModel):
    """The content of an error envelope."""

    code: str
    message: str
    details: tuple[Detail, ...]
    request_id: str


class ErrorEnvelope(BaseModel):
    """The form of all errors of Kaiten."""

    error: ErrorBody


def error_from_reply(reply: Reply, request_id: str) -> KaitenError | None:
    """Return the error of a response, from Kaiten or from a proxy in front, or None for a 200."""
    if reply.status == HTTPStatus.OK:
        return None
    if reply.status < HTTPStatus.BAD_REQUEST:
        return _unexpected(reply, request_id, "redirects are not followed; use the final URL")
    try:
        body = ErrorEnvelope.model_validate_json(reply.content).error
    except ValidationError:
        message = (
            "The server or a proxy in front of it returned an error that is not in Kaiten's form."
        )
        body = None
    return _error_type(reply.status, body.code if body else None)(
        body.message if body else message,
        status=reply.status,
        code=body.code if body else None,
        request_id=body.request_id if body else reply.request_id_or(request_id),
        details=body.details if body else (),
        retry_after_s=_retry_after_s(reply),
    )


def error_without_reply(error: httpx.RequestError, host: str, request_id: str) -> KaitenError:
    """Return the error of an attempt without a response."""
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return TimedOut(f"{host} did not respond within the time limit.", request_id=request_id)
    if isinstance(error, httpx.DecodingError):
        return UnexpectedAnswer(f"The response of {host} cannot be decoded.", request_id=request_id)
    reason = type(error).__name__
    # The text of the system or of TLS. Other errors may quote the request.
    if isinstance(error, httpx.NetworkError) and str(error):
        reason = f"{reason}: {error}"
    return ConnectionFailed(f"{host} cannot be reached ({reason}).", request_id=request_id)


def read_predictions(reply: Reply, request_id: str, count: int) -> PredictResponse:
    """Return the predictions for ``count`` inputs; UnexpectedAnswer if some are missing."""
    answer = _read(reply, request_id, PredictResponse)
    if len(answer.predictions) != count:
        reason = f"{len(answer.predictions)} predictions for {count} inputs"
        raise _mismatched(reply, request_id, reason)
    return answer


def read_feedback(reply: Reply, request_id: str, count: int) -> FeedbackResponse:
    """Return the result for ``count`` labels; UnexpectedAnswer if they were not all stored."""
    answer = _read(reply, request_id, FeedbackResponse)
    if answer.accepted != count:
        raise _mismatched(reply, request_id, f"{answer.accepted} accepted of {count} labels")
    return answer


def check_request_id(reply: Reply, request_id: str, body_id: str) -> None:
    """Raise MismatchedAnswer unless the body and the header of a response name this request."""
    other_ids = {body_id, reply.request_id_or(body_id)} - {request_id}
    if other_ids:
        reason = f"it names the request {', '.join(sorted(other_ids))}"
        raise _mismatched(reply, request_id, reason)


def _mismatched(reply: Reply, request_id: str, reason: str) -> MismatchedAnswer:
    message = (
        f"The response is not for this request: {reason}. The connection is not used again. If "
        "this happens for every response, a proxy replaces X-Request-ID: let it forward the id, or "
        "pass verify_request_id=False."
    )
    return MismatchedAnswer(message, status=reply.status, request_id=request_id)


def _read(reply: Reply, request_id: str, model: type[AnswerT]) -> AnswerT:
    try:
        return model.model_validate_json(reply.content)
    except ValidationError as error:
        # Fields and error types only: the error's own text quotes the response.
        problems = [
            f"{'.'.join(map(str, problem['loc'])) or 'body'} {problem['type']}"
            for problem in error.errors(include_input=False, include_url=False)
        ]
        raise _unexpected(reply, request_id, ", ".join(problems[:3])) from None


def _error_type(status: int, code: str | None) -> type[KaitenError]:
    other = InvalidRequest if status < HTTPStatus.INTERNAL_SERVER_ERROR else ServerError
    return _BY_CODE.get(code) or _BY_STATUS.get(status, other)


def _unexpected(reply: Reply, request_id: str, reason: str) -> UnexpectedAnswer:
    kind = reply.headers.get("Content-Type", "no content type").partition(";")[0]
    message = f"The response ({kind}) is not Kaiten's: {reason}. Check the URL."
    return UnexpectedAnswer(
        message, status=reply.status, request_id=reply.request_id_or(request_id)
    )


def _retry_after_s(reply: Reply) -> float | None:
    """Return the wait in Retry-After, given in seconds or as a date."""
    value = reply.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    until = _epoch(value)
    if until is None:
        return None
    # By the server's clock if it sends Date: this machine's clock may be wrong.
    now = _epoch(reply.headers.get("Date", ""))
    return max(0.0, until - (reply.received_at if now is None else now))


def _epoch(date: str) -> float | None:
    parsed = parsedate_tz(date)
    try:
        return None if parsed is None else float(mktime_tz(parsed))
    except (ValueError, OverflowError):
        return None
