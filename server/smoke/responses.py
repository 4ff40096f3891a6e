"""Reads a deployment's responses and metrics, and compares them with the API contract."""

import re
import ssl
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from secrets import token_urlsafe

import httpx
from pydantic import ValidationError

from gateway.schemas import ErrorEnvelope

_SERIES = re.compile(r"^(\w+)\{(.*)\} \S+$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_MAX_SUMMARY_CHARS = 300


class CheckFailed(Exception):
    """A deviation from the contract, as observed, and the remedy."""

    def __init__(self, observation: str, remedy: str) -> None:
        super().__init__(observation)
        self.observation, self.remedy = observation, remedy


class CheckSkipped(Exception):
    """Why something cannot be checked; the reason is not a fault."""


def metric_series(metrics: str, name: str) -> Iterator[dict[str, str]]:
    """Yield the labels of each series of a metric."""
    for metric, labels in _SERIES.findall(metrics):
        if metric == name:
            yield dict(_LABEL.findall(labels))


def model_tags_of(series: Iterable[dict[str, str]]) -> set[str]:
    """Return the model tags in the labels of series."""
    return {f"{labels.get('model')}:{labels.get('version')}" for labels in series}


def forge_token(token: str) -> str:
    """Return a token with the same claims and a random signature."""
    claims, _, signature = token.rpartition(".")
    return f"{claims}.{token_urlsafe(len(signature))[: len(signature)]}"


def expect_error(response: httpx.Response, status: HTTPStatus, code: str, remedy: str) -> None:
    """Raise CheckFailed unless the response is this error, in the envelope, with the sent id."""
    remedy = f"{remedy} it answers {status.value}, {code}"
    if response.status_code != status:
        raise CheckFailed(f"{describe_status(response)}, not {status.value}", remedy)
    envelope = _envelope(response)
    if envelope is None or envelope.error.code != code:
        raise CheckFailed(f"{status.value} that is not in Kaiten's envelope ({code})", remedy)
    request_ids = {envelope.error.request_id, response.headers.get("X-Request-ID")}
    if request_ids != {sent_request_id(response)}:
        raise CheckFailed("request_id is not the X-Request-ID that was sent", remedy)


def _envelope(response: httpx.Response) -> ErrorEnvelope | None:
    try:
        return ErrorEnvelope.model_validate_json(response.content)
    except ValidationError:
        return None


def describe_status(response: httpx.Response) -> str:
    """Return a response's status, and the code and details of its envelope, if it has one."""
    envelope = _envelope(response)
    if envelope is None:
        return str(response.status_code)
    details = "".join(f"; {detail.field} {detail.reason}" for detail in envelope.error.details)
    return f"{response.status_code} {envelope.error.code}{details}"


def sent_request_id(response: httpx.Response) -> str:
    """Return the X-Request-ID of the request."""
    return response.request.headers["X-Request-ID"]


def is_tls_error(error: BaseException | None) -> bool:
    """Return whether TLS failed, which waiting does not cure."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False


def to_one_line(text: str) -> str:
    """Return the text as one short line."""
    return " ".join(text.split())[:_MAX_SUMMARY_CHARS]
