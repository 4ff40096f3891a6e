"""What a deployment answers: read, and held to the contract."""

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
_MAX_SEEN = 300


class Failed(Exception):
    """What was seen in place of what was promised, and what to do about it."""

    def __init__(self, seen: str, remedy: str) -> None:
        super().__init__(seen)
        self.seen, self.remedy = seen, remedy


class Skipped(Exception):
    """What can not be looked at, for a reason that is no fault."""


def series(metrics: str, name: str) -> Iterator[dict[str, str]]:
    """Yield the labels of each series of a metric."""
    for found, labels in _SERIES.findall(metrics):
        if found == name:
            yield dict(_LABEL.findall(labels))


def versions_of(labelled: Iterable[dict[str, str]]) -> set[str]:
    """Return the versions that series are of, as name:version."""
    return {f"{each.get('model')}:{each.get('version')}" for each in labelled}


def forged(token: str) -> str:
    """Return a token of the same claims, by somebody who lacks the key."""
    claims, _, signature = token.rpartition(".")
    return f"{claims}.{token_urlsafe(len(signature))[: len(signature)]}"


def expect(answer: httpx.Response, status: HTTPStatus, code: str, remedy: str) -> None:
    """Raise Failed for an answer that is not this error in the envelope, with the id sent."""
    wanted = f"{remedy} it answers {status.value}, {code}"
    if answer.status_code != status:
        raise Failed(f"{status_of(answer)}, not {status.value}", wanted)
    found = _envelope(answer)
    if found is None or found.error.code != code:
        raise Failed(f"{status.value} that is not in Kaiten's envelope ({code})", wanted)
    if {found.error.request_id, answer.headers.get("X-Request-ID")} != {id_sent(answer)}:
        raise Failed("request_id is not the X-Request-ID that was sent", wanted)


def _envelope(answer: httpx.Response) -> ErrorEnvelope | None:
    try:
        return ErrorEnvelope.model_validate_json(answer.content)
    except ValidationError:
        return None


def status_of(answer: httpx.Response) -> str:
    """Return an answer's status, and what its envelope says, where it has one."""
    found = _envelope(answer)
    if found is None:
        return str(answer.status_code)
    details = "".join(f"; {each.field} {each.reason}" for each in found.error.details)
    return f"{answer.status_code} {found.error.code}{details}"


def id_sent(answer: httpx.Response) -> str:
    """Return the X-Request-ID that was sent for it."""
    return answer.request.headers["X-Request-ID"]


def is_tls(error: BaseException | None) -> bool:
    """Return whether TLS is what failed; no waiting mends that."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False


def one_line(seen: str) -> str:
    """Return it as one short line."""
    return " ".join(seen.split())[:_MAX_SEEN]
