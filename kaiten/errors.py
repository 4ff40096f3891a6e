"""Every error that Kaiten raises deliberately, in one tree.

KaitenError
    SetupError                 for the operator; a command or a start stops with it
        InvalidSettings
        ModelNotFound
            ModelLost
        ModelRejected
            ModelUnusable
        DataRejected
        PromotionRefused
        BuildRefused
        StateUnavailable
        AuditLogCorrupt
        StateBusy
    RequestError               for the caller; the request cannot succeed as it is
        MalformedBody
        InvalidInput
        UnknownApiVersion
        ApiVersionMismatch
        UnsupportedContentType
        BodyTooLarge
        UnknownRoute
        MethodNotAllowed
        UnknownModel
        Unauthenticated
        Forbidden
        LoopbackOnly
        ClientDisconnected
        MalformedRequest
        HeadersTooLarge
        BodyTimeout
        UnsupportedContentEncoding
        RateLimited
        TooManyConcurrent
    ServiceError               the service's own state; a retry or another replica may help
        QueueFull
        BodyMemoryFull
        Overloaded
        DeadlineExceeded
        NotReady
        InferenceFailed
        IssuerUnavailable
        OutOfDescriptors
        DatabaseUnavailable

Classes take facts and build the message: what happened, where, and the next step. No message quotes
the text of an input. gateway/errors.py gives each type its HTTP status and code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Detail:
    """A problem: the field, such as ``inputs.3``, and the reason, without text of the input."""

    field: str
    reason: str


class KaitenError(Exception):
    """The base: a message for the caller or operator that caused the error, and its details."""

    def __init__(self, message: str, details: Sequence[Detail] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.details = tuple(details)


class SetupError(KaitenError):
    """An error for the operator."""


class InvalidSettings(SetupError):
    """Settings that are invalid, or contradict each other or the machine."""

    def __init__(self, problems: Sequence[Detail], source: str) -> None:
        lines = "".join(f"\n  {problem.field}: {problem.reason}" for problem in problems)
        super().__init__(f"The settings are invalid ({source}):{lines}", problems)


class ModelNotFound(SetupError):
    """The model store has no such version."""

    def __init__(self, tag: str, existing: Sequence[str], folder: object = None) -> None:
        place = "" if folder is None else f" {folder}"
        mount = "" if existing else "If the store is a volume, check that it is mounted. "
        self.tag = tag
        super().__init__(
            f"Model {tag} is not in the model store{place} (there: "
            f"{', '.join(existing) or 'none'}). {mount}Run `kaiten register FOLDER --name NAME "
            "--version X.Y.Z --task TASK` for your model, or in a checkout `make quickstart` for "
            "the quickstart model, and name it in serving.models."
        )


class ModelLost(ModelNotFound):
    """A version was registered in this store, and its files are missing."""

    def __init__(self, tag: str, missing: object, folder: object) -> None:
        SetupError.__init__(
            self,
            f"{tag} was registered in this store, but {missing} is missing. "
            f"{restore_remedy(tag, folder)}.",
        )
        self.tag = tag


def restore_remedy(tag: str, folder: object) -> str:
    """Return the remedy for a version in ``folder`` whose files differ from the registered ones.

    Registering it again would produce other bytes, without a validation and a promotion. BentoML
    imports a version only if its folder does not exist.
    """
    name, _, _ = tag.partition(":")
    return (
        f"First move {folder}, if it exists, out of the store. Then restore {tag} from a copy: put "
        "the folder there from a backup or an image that contains it, or import an earlier "
        "`bentoml models export` with `bentoml models import FILE`. Without a copy, go "
        f"back to the version before (kaiten rollback {name}), or register the model under a new "
        "version and validate it with --baseline none. If serving.models pins a version, as in a "
        "bento, name the other one there, or serve the previous bento. Running workers serve from "
        f"memory: do not restart them, do not delete {tag}, and do not register it again"
    )


class ModelRejected(SetupError):
    """A model cannot be registered or loaded."""

    def __init__(self, field: str, reason: str, remedy: str) -> None:
        super().__init__(f"{field}: {reason}. {remedy}", [Detail(field, reason)])


class ModelUnusable(ModelRejected):
    """A registered version cannot be loaded any more, unless a copy of its files exists."""


class DataRejected(SetupError):
    """A file of rows cannot be used for validation."""

    def __init__(self, file: object, reason: str, remedy: str) -> None:
        # The message is one line, and a file name may contain line breaks.
        if not str(file).isprintable():
            file = repr(str(file))
        super().__init__(f"{file}: {reason}. {remedy}", [Detail("data", reason)])


class PromotionRefused(SetupError):
    """A version may not serve in the requested stage or environment."""

    def __init__(self, tag: str, reason: str, remedy: str) -> None:
        super().__init__(f"{tag} is not promoted: {reason}. {remedy}", [Detail("version", reason)])


class BuildRefused(SetupError):
    """A bento or an image cannot be built."""


class AuditLogCorrupt(SetupError):
    """The audit log was changed or damaged; nothing is decided from it."""

    def __init__(self, path: object, line: int, reason: str) -> None:
        super().__init__(
            f"The audit log {path} is corrupt: line {line} {reason}. Restore it from a backup; the "
            "log files hold its head after each change (event audit_log_appended).",
            [Detail("audit_log", f"line {line} {reason}")],
        )


class StateBusy(SetupError):
    """Another process is changing a model's state."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"Another process is changing the state of {name}. Wait until it ends, and try again."
        )


class StateUnavailable(SetupError):
    """State that workers share cannot be read or written."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where} cannot be used: {reason}.")


class RequestError(KaitenError):
    """An error for the caller: the request cannot succeed as it is."""


class MalformedBody(RequestError):
    """The body is not JSON."""

    def __init__(self, reason: str) -> None:
        super().__init__("The body is not valid JSON.", [Detail("body", reason)])


class InvalidInput(RequestError):
    """The body is JSON, but does not match the route's schema."""

    def __init__(self, details: Sequence[Detail]) -> None:
        super().__init__("The request is invalid; see details.", details)


class UnknownApiVersion(RequestError):
    """The API-Version header names no version of the API."""

    def __init__(self, versions: Sequence[str]) -> None:
        reason = f"is not supported; use one of {', '.join(versions)}"
        super().__init__("The API version is not supported.", [Detail("API-Version", reason)])


class ApiVersionMismatch(RequestError):
    """The API-Version header contradicts the path, or is sent more than once."""

    def __init__(self, reason: str) -> None:
        super().__init__("The API version is ambiguous.", [Detail("API-Version", reason)])


class UnsupportedContentType(RequestError):
    """The route does not accept the body's content type."""

    def __init__(self, refusal: str = "") -> None:
        reason = "send application/json" + (f"; {refusal}" if refusal else "")
        super().__init__("The content type is not supported.", [Detail("Content-Type", reason)])


class BodyTooLarge(RequestError):
    """The body has more bytes than the limit."""

    def __init__(self, limit_bytes: int) -> None:
        reason = f"is over the limit of {limit_bytes} bytes"
        super().__init__(
            "The body is too large; send fewer or shorter texts.", [Detail("body", reason)]
        )


class UnknownRoute(RequestError):
    """No route has this path."""

    def __init__(self, refusal: str = "") -> None:
        details = [Detail("path", refusal)] if refusal else []
        super().__init__("There is no such route; /docs lists them.", details)


class MethodNotAllowed(RequestError):
    """The route does not accept this method."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self.allowed = tuple(allowed)
        super().__init__(f"The route accepts {', '.join(allowed)} only.")


class UnknownModel(RequestError):
    """The server does not serve the requested model."""

    def __init__(self, served: Sequence[str]) -> None:
        remedy = f"; use one of {', '.join(served)}" if served else ""
        reason = f"is not served{remedy}"
        super().__init__("The model is not served.", [Detail("model", reason)])


class Unauthenticated(RequestError):
    """The request has no credential, several, or one that is not valid.

    ``rejected`` is the kind of the one that is not valid. The message gives no reason, which could
    help an attacker to forge a token.
    """

    def __init__(self, rejected: Literal["bearer token", "API key"] | None = None) -> None:
        self.rejected = rejected
        super().__init__(
            f"The {rejected} is not valid; obtain a new one."
            if rejected
            else "One credential is required; send Authorization: Bearer TOKEN or X-API-Key: KEY."
        )


class Forbidden(RequestError):
    """The credential is valid, but lacks a scope."""

    def __init__(self, scope: str) -> None:
        self.scope = scope
        super().__init__(f"The credential lacks the scope {scope}; obtain one that has it.")


class LoopbackOnly(RequestError):
    """The server uses the development secret, and the caller is on another machine."""

    def __init__(self) -> None:
        super().__init__(
            "The development secret is for callers on this machine only; set KAITEN_AUTH__SECRET."
        )


class ClientDisconnected(RequestError):
    """The client disconnected before the response began; seen in metrics and logs only."""

    def __init__(self) -> None:
        super().__init__("The client disconnected before the response.")


class MalformedRequest(RequestError):
    """The headers contradict each other, or the request is not valid HTTP/1.1."""

    def __init__(self, header: str | None = None) -> None:
        if header is None:
            reason = "cannot be parsed; the connection is closed"
            super().__init__("The request is not valid HTTP.", [Detail("request", reason)])
        else:
            reason = "has more than one value; send it once"
            super().__init__("The request has contradictory headers.", [Detail(header, reason)])


class HeadersTooLarge(RequestError):
    """The request has more headers, or larger ones, than the limits."""

    def __init__(self, limit: int, unit: str) -> None:
        reason = f"are over the limit of {limit} {unit}"
        super().__init__(
            "The headers are too large; send fewer or shorter headers.", [Detail("headers", reason)]
        )


class BodyTimeout(RequestError):
    """The body did not arrive in time."""

    def __init__(self, limit_s: float) -> None:
        reason = f"did not arrive within {limit_s:g} seconds"
        super().__init__(
            "The body arrived too slowly; send it without pauses.", [Detail("body", reason)]
        )


class UnsupportedContentEncoding(RequestError):
    """The body is compressed, which no route accepts."""

    def __init__(self) -> None:
        details = [Detail("Content-Encoding", "send the body uncompressed")]
        super().__init__("The content encoding is not supported.", details)


class RateLimited(RequestError):
    """The subject has reached a rate limit for the current period."""

    def __init__(self, limit: str, amount: int, window_s: int, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        reason = f"are limited to {amount} in {window_s} seconds"
        super().__init__("The rate limit is reached; try again later.", [Detail(limit, reason)])


class TooManyConcurrent(RequestError):
    """The subject has as many concurrent requests as it may have."""

    retry_after_s = 1

    def __init__(self, limit: int) -> None:
        reason = f"are limited to {limit}; wait for a response"
        super().__init__("There are too many concurrent requests.", [Detail("concurrency", reason)])


class ServiceError(KaitenError):
    """An error of the service's own state."""


class QueueFull(ServiceError):
    """The queue is full, or too long for the request's deadline; no item was queued."""

    def __init__(self, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__("The queue is full; try again later.")


class BodyMemoryFull(ServiceError):
    """The bodies of other requests use all memory for bodies; this one was not read."""

    retry_after_s = 1

    def __init__(self) -> None:
        super().__init__("No memory is available for the body; try again later.")


class Overloaded(ServiceError):
    """The server is at its limit of requests or connections; this request was not read."""

    retry_after_s = 1

    def __init__(self) -> None:
        super().__init__("The server is overloaded; try again later.")


class DeadlineExceeded(ServiceError):
    """The time limit of the request passed; items that had not started were not computed."""

    def __init__(self, retry_after_s: int = 1) -> None:
        self.retry_after_s = retry_after_s
        super().__init__("The request's time limit has passed; try again later.")


class NotReady(ServiceError):
    """The model is still warming up, or its batcher has died."""

    def __init__(self, retry_after_s: int = 5) -> None:
        self.retry_after_s = retry_after_s
        super().__init__("The service is not ready; try again later.")


class IssuerUnavailable(ServiceError):
    """The issuer's signing keys are unavailable, so the token cannot be verified."""

    def __init__(self, retry_after_s: int = 5) -> None:
        self.retry_after_s = retry_after_s
        super().__init__("The keys of the token's issuer are unavailable; try again later.")


class OutOfDescriptors(ServiceError):
    """The server cannot open the file that the response needs; predictions need none."""

    def __init__(self, retry_after_s: int = 2) -> None:
        self.retry_after_s = retry_after_s
        super().__init__("The server cannot open more files; try again later.")


class DatabaseUnavailable(ServiceError):
    """The database of predictions and labels is unavailable.

    No label of the request was stored, unless the connection broke just after the write.
    """

    def __init__(self, retry_after_s: int = 2) -> None:
        self.retry_after_s = retry_after_s
        super().__init__("The database is unavailable; try again later.")


class InferenceFailed(ServiceError):
    """The model failed on an input, computed alone. The cause is in the log only."""

    def __init__(self) -> None:
        super().__init__("The model failed on this input; report the request id.")


class OutOfMemory(Exception):
    """A batch does not fit into the device's memory. No caller sees it: a smaller batch may fit."""


class BlankText(Exception):
    """A text has no tokens for the model; ``index`` is its position among the inputs.

    The gateway raises InvalidInput instead, which names the field.
    """

    def __init__(self, index: int) -> None:
        super().__init__(f"input {index} is blank to the model")
        self.index = index
