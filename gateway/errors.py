"""Errors on the wire: one table from type to status and code, and the one envelope."""

import json
from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import Response

from kaiten import errors
from kaiten.context import current

# The status and code of each error that can reach a caller. A type that is missing here is a 500.
STATUS_AND_CODE: Mapping[type[errors.KaitenError], tuple[int, str]] = {
    errors.MalformedBody: (400, "malformed_body"),
    errors.MalformedRequest: (400, "malformed_request"),
    errors.UnknownApiVersion: (400, "unknown_version"),
    errors.ApiVersionMismatch: (400, "version_mismatch"),
    errors.Unauthenticated: (401, "unauthenticated"),
    errors.Forbidden: (403, "forbidden"),
    errors.LoopbackOnly: (403, "loopback_only"),
    errors.UnknownRoute: (404, "not_found"),
    errors.UnknownModel: (404, "unknown_model"),
    errors.MethodNotAllowed: (405, "method_not_allowed"),
    errors.BodyTimeout: (408, "body_timeout"),
    errors.BodyTooLarge: (413, "body_too_large"),
    errors.UnsupportedContentType: (415, "unsupported_content_type"),
    errors.UnsupportedContentEncoding: (415, "unsupported_content_encoding"),
    errors.InvalidInput: (422, "invalid_input"),
    errors.QueueFull: (429, "queue_full"),
    errors.BodyMemoryFull: (429, "body_memory_full"),
    errors.RateLimited: (429, "rate_limited"),
    errors.TooManyConcurrent: (429, "too_many_concurrent"),
    errors.HeadersTooLarge: (431, "headers_too_large"),
    errors.ClientDisconnected: (499, "caller_gone"),
    errors.InferenceFailed: (500, "inference_failed"),
    errors.NotReady: (503, "not_ready"),
    errors.Overloaded: (503, "overloaded"),
    errors.IssuerUnavailable: (503, "issuer_unavailable"),
    errors.DatabaseUnavailable: (503, "database_unavailable"),
    errors.OutOfDescriptors: (503, "out_of_descriptors"),
    errors.DeadlineExceeded: (504, "deadline_exceeded"),
}
INTERNAL = (500, "internal_error")
FIRST_ERROR_STATUS = 400


def error_response(error: Exception) -> Response:
    """Return the envelope of an error. The caller sees only the message and details of KaitenError.

    Of an error that is not in the table, the caller sees none.
    """
    if not isinstance(error, errors.KaitenError) or type(error) not in STATUS_AND_CODE:
        return envelope(*INTERNAL, "Something went wrong in the service; see its log.", (), {})
    status, code = STATUS_AND_CODE[type(error)]
    return envelope(status, code, error.message, error.details, error_headers(error))


def foreign_response(status: int, headers: Mapping[str, str]) -> Response:
    """Return the envelope for a failure that BentoML or Starlette answered in a form of its own."""
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        down = status == HTTPStatus.SERVICE_UNAVAILABLE
        return error_response(errors.NotReady() if down else RuntimeError())
    phrase = _PHRASES.get(status, "Request failed")
    allow = {name: value for name, value in headers.items() if name == "allow"}
    return envelope(status, phrase.lower().replace(" ", "_"), f"{phrase}.", (), allow)


_PHRASES = {status.value: status.phrase for status in HTTPStatus}


def envelope(
    status: int,
    code: str,
    message: str,
    details: tuple[errors.Detail, ...],
    headers: Mapping[str, str],
) -> Response:
    """Return the one form of every failure."""
    body = {
        "code": code,
        "message": message,
        "details": [{"field": detail.field, "reason": detail.reason} for detail in details],
        "request_id": current().request_id,
    }
    content = json.dumps({"error": body}, ensure_ascii=True)
    return Response(content, status, headers=headers, media_type="application/json")


def error_headers(error: Exception) -> dict[str, str]:
    """Return the headers that go with an error, such as Retry-After, whatever renders it."""
    if isinstance(error, _WITH_RETRY_AFTER):
        return {"Retry-After": str(error.retry_after_s)}
    match error:
        case errors.MethodNotAllowed():
            return {"Allow": ", ".join(error.allowed)}
        case errors.Unauthenticated(rejected="bearer token"):
            return {"WWW-Authenticate": 'Bearer realm="kaiten", error="invalid_token"'}
        case errors.Unauthenticated():
            return {"WWW-Authenticate": 'Bearer realm="kaiten"'}
        case errors.Forbidden():
            challenge = f'Bearer realm="kaiten", error="insufficient_scope", scope="{error.scope}"'
            return {"WWW-Authenticate": challenge}
    return dict(_FIXED_HEADERS.get(type(error), {}))


_WITH_RETRY_AFTER = (
    errors.QueueFull,
    errors.BodyMemoryFull,
    errors.Overloaded,
    errors.DeadlineExceeded,
    errors.RateLimited,
    errors.TooManyConcurrent,
    errors.IssuerUnavailable,
    errors.DatabaseUnavailable,
    errors.OutOfDescriptors,
    errors.NotReady,
)
_FIXED_HEADERS: Mapping[type[Exception], Mapping[str, str]] = {
    # The rest of the body may still come, and must not be read as another request.
    errors.BodyTimeout: {"Connection": "close"},
    errors.UnsupportedContentEncoding: {"Accept-Encoding": "identity"},
}
