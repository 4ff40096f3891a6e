"""What came back, read: an answer, or the error that it stands for. No I/O."""

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
    """An answer as it came, at ``received_at`` seconds of the epoch."""

    status: int
    headers: httpx.Headers
    content: bytes = field(repr=False)
    received_at: float

    def id_or(self, own: str) -> str:
        """Return the request's id as the server has it, or else our own."""
        return self.headers.get("X-Request-ID") or own


class ErrorBody(BaseModel):
    """What went wrong."""

    code: str
    message: str
    details: tuple[Detail, ...]
    request_id: str


class ErrorEnvelope(BaseModel):
    """The one form of Kaiten's failures."""

    error: ErrorBody


def error_of(reply: Reply, request_id: str) -> KaitenError | None:
    """Return the error that a reply stands for, whether Kaiten worded it or a proxy before it."""
    if reply.status == HTTPStatus.OK:
        return None
    if reply.status < HTTPStatus.BAD_REQUEST:
        return _unexpected(reply, request_id, "redirects are not followed; name the final URL")
    try:
        body = ErrorEnvelope.model_validate_json(reply.content).error
    except ValidationError:
        message = "The server, or a proxy before it, refused without an error in Kaiten's form."
        body = None
    return _kind(reply.status, body.code if body else None)(
        body.message if body else message,
        status=reply.status,
        code=body.code if body else None,
        request_id=body.request_id if body else reply.id_or(request_id),
        details=body.details if body else (),
        retry_after_s=_retry_after_s(reply),
    )


def error_without_reply(error: httpx.RequestError, host: str, request_id: str) -> KaitenError:
    """Return the error for a try that brought no answer."""
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return TimedOut(f"No answer from {host} within the time limit.", request_id=request_id)
    if isinstance(error, httpx.DecodingError):
        return UnexpectedAnswer(f"The answer of {host} is garbled.", request_id=request_id)
    reason = type(error).__name__
    # What the system or TLS says. Other kinds may quote what was sent.
    if isinstance(error, httpx.NetworkError) and str(error):
        reason = f"{reason}: {error}"
    return ConnectionFailed(f"No answer from {host} ({reason}).", request_id=request_id)


def read_predictions(reply: Reply, request_id: str, count: int) -> PredictResponse:
    """Return the predictions for so many inputs; UnexpectedAnswer if the reply holds none."""
    answer = _read(reply, request_id, PredictResponse)
    if len(answer.predictions) != count:
        reason = f"{len(answer.predictions)} predictions for {count} inputs"
        raise _mismatched(reply, request_id, reason)
    return answer


def read_feedback(reply: Reply, request_id: str, count: int) -> FeedbackResponse:
    """Return that so many labels are kept; UnexpectedAnswer if the reply does not say so."""
    answer = _read(reply, request_id, FeedbackResponse)
    if answer.accepted != count:
        raise _mismatched(reply, request_id, f"{answer.accepted} accepted of {count} labels")
    return answer


def check_owner(reply: Reply, request_id: str, named: str) -> None:
    """Raise MismatchedAnswer unless a reply, which names a request in its body, is for this one."""
    others = {named, reply.id_or(named)} - {request_id}
    if others:
        reason = f"it names the request {', '.join(sorted(others))}"
        raise _mismatched(reply, request_id, reason)


def _mismatched(reply: Reply, request_id: str, reason: str) -> MismatchedAnswer:
    message = (
        f"The answer is not for this request: {reason}. The connection is not used again. If every "
        "answer is so, a proxy replaces X-Request-ID: let it keep the id, or pass "
        "verify_request_id=False."
    )
    return MismatchedAnswer(message, status=reply.status, request_id=request_id)


def _read(reply: Reply, request_id: str, model: type[AnswerT]) -> AnswerT:
    try:
        return model.model_validate_json(reply.content)
    except ValidationError as error:
        # Places and kinds only: the error's own text quotes the answer.
        found = error.errors(include_input=False, include_url=False)
        places = [f"{'.'.join(map(str, each['loc'])) or 'body'} {each['type']}" for each in found]
        raise _unexpected(reply, request_id, ", ".join(places[:3])) from None


def _kind(status: int, code: str | None) -> type[KaitenError]:
    other = InvalidRequest if status < HTTPStatus.INTERNAL_SERVER_ERROR else ServerError
    return _BY_CODE.get(code) or _BY_STATUS.get(status, other)


def _unexpected(reply: Reply, request_id: str, reason: str) -> UnexpectedAnswer:
    kind = reply.headers.get("Content-Type", "of no type").partition(";")[0]
    message = f"The answer ({kind}) is not Kaiten's: {reason}. Does the URL name the server?"
    return UnexpectedAnswer(message, status=reply.status, request_id=reply.id_or(request_id))


def _retry_after_s(reply: Reply) -> float | None:
    """Return what Retry-After asks to wait, given in seconds or as a date."""
    value = reply.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    until = _epoch(value)
    if until is None:
        return None
    # By the server's own clock where it tells: the caller's may be wrong.
    now = _epoch(reply.headers.get("Date", ""))
    return max(0.0, until - (reply.received_at if now is None else now))


def _epoch(date: str) -> float | None:
    parsed = parsedate_tz(date)
    try:
        return None if parsed is None else float(mktime_tz(parsed))
    except (ValueError, OverflowError):
        return None
