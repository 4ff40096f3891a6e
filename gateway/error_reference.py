"""Every failure and its remedy: the source of the OpenAPI errors and docs/reference/errors.md."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from gateway.errors import INTERNAL, STATUS_AND_CODE

Header = Literal["Accept-Encoding", "Allow", "Retry-After", "WWW-Authenticate"]


class Retry(StrEnum):
    """Whether the same request, sent again, may succeed."""

    NO = "no"
    AFTER = "after `Retry-After` seconds"
    BACK_OFF = "with growing pauses"


@dataclass(frozen=True, slots=True)
class Remedy:
    """What a caller is to do about a failure, and which headers come with it."""

    text: str
    retry: Retry = Retry.NO
    headers: tuple[Header, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One failure, whole."""

    status: int
    code: str
    meaning: str
    remedy: Remedy


# By code; each in gateway/errors.py has one.
REMEDIES: Mapping[str, Remedy] = {
    "malformed_body": Remedy("Send JSON in UTF-8."),
    "malformed_request": Remedy("Send HTTP/1.1, and the header that the details name once."),
    "unknown_version": Remedy("Send a version that the details list, or no `API-Version`."),
    "version_mismatch": Remedy("Send `API-Version` once and as the path says, or not at all."),
    "unauthenticated": Remedy(
        "Send a valid token, as `Authorization: Bearer TOKEN`, or an API key, as `X-API-Key`.",
        headers=("WWW-Authenticate",),
    ),
    "forbidden": Remedy(
        "Ask for a token or an API key with the scope that is named.", headers=("WWW-Authenticate",)
    ),
    "loopback_only": Remedy("Call from the same machine, or have the operator set a secret."),
    "not_found": Remedy("Use a route that `/docs` lists."),
    "unknown_model": Remedy("Use a model that the details list, or leave `model` out."),
    "method_not_allowed": Remedy("Use a method that `Allow` lists.", headers=("Allow",)),
    "body_timeout": Remedy("Send the whole body without a pause.", Retry.BACK_OFF),
    "body_too_large": Remedy("Send fewer or shorter texts at once."),
    "unsupported_content_type": Remedy("Send `Content-Type: application/json`."),
    "unsupported_content_encoding": Remedy(
        "Send the body uncompressed.", headers=("Accept-Encoding",)
    ),
    "invalid_input": Remedy("Correct the fields that the details name."),
    "queue_full": Remedy(
        "Wait; the queue is full, or too long for the request's time limit.",
        Retry.AFTER,
        ("Retry-After",),
    ),
    "body_memory_full": Remedy(
        "Wait; send fewer large bodies at once.", Retry.AFTER, ("Retry-After",)
    ),
    "rate_limited": Remedy(
        "Wait: a limit of yours is reached; `RateLimit` says which.",
        Retry.AFTER,
        ("Retry-After",),
    ),
    "too_many_concurrent": Remedy(
        "Wait for your other answers before you ask again.", Retry.AFTER, ("Retry-After",)
    ),
    "headers_too_large": Remedy("Send fewer or shorter headers."),
    "caller_gone": Remedy("Nothing: the caller has disconnected.", Retry.BACK_OFF),
    "inference_failed": Remedy("Send the other texts without it; report the request id."),
    "not_ready": Remedy(
        "Wait; the model is warming up, or its worker is being replaced.",
        Retry.AFTER,
        ("Retry-After",),
    ),
    "overloaded": Remedy(
        "Wait; the server has more requests or connections than it can handle.",
        Retry.AFTER,
        ("Retry-After",),
    ),
    "issuer_unavailable": Remedy(
        "Wait; the issuer of the token is unavailable.", Retry.AFTER, ("Retry-After",)
    ),
    "database_unavailable": Remedy(
        "Wait, and send it again, as it may not be kept: the same label twice is one label.",
        Retry.AFTER,
        ("Retry-After",),
    ),
    "out_of_descriptors": Remedy(
        "Wait; the server has as many connections as it may open files.",
        Retry.AFTER,
        ("Retry-After",),
    ),
    "deadline_exceeded": Remedy(
        "Send less at once, or allow more time in `X-Request-Timeout-Ms`.",
        Retry.AFTER,
        ("Retry-After",),
    ),
    "internal_error": Remedy("Report the request id; the log has the cause.", Retry.BACK_OFF),
}


def rows() -> Iterator[Row]:
    """Yield every failure, by status."""
    failures = [
        Row(status, code, _meaning(error.__doc__), REMEDIES[code])
        for error, (status, code) in STATUS_AND_CODE.items()
    ]
    status, code = INTERNAL
    unexpected = "The service failed unexpectedly."
    failures.append(Row(status, code, unexpected, REMEDIES[code]))
    yield from sorted(failures, key=lambda row: row.status)


def table() -> str:
    """Return every failure as a table in Markdown."""
    lines = [
        "| status | code | what it means | what to do | again? | headers |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows():
        headers = ", ".join(f"`{header}`" for header in row.remedy.headers)
        lines.append(
            f"| {row.status} | `{row.code}` | {row.meaning} | {row.remedy.text} "
            f"| {row.remedy.retry} | {headers} |"
        )
    return "\n".join(lines) + "\n"


def _meaning(docstring: str | None) -> str:
    return (docstring or "").partition("\n")[0]
