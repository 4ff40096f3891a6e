"""Every error that Kaiten raises on purpose, in one tree.

KaitenError
    SetupError                 the operator can mend it; a command or a start stops with it
        InvalidSettings
        ModelNotFound
            ModelLost
        ModelRejected
        DataRejected
        PromotionRefused
        BuildRefused
        StateUnavailable
        AuditLogCorrupt
        StateBusy
    RequestError               the caller can mend it
        MalformedBody
        InvalidInput
        UnknownVersion
        VersionMismatch
        UnsupportedContentType
        BodyTooLarge
        UnknownRoute
        MethodNotAllowed
        UnknownModel
        Unauthenticated
        Forbidden
        LoopbackOnly
        CallerGone
        MalformedRequest
        HeadersTooLarge
        BodyTimeout
        UnsupportedContentEncoding
        RateLimited
        TooManyConcurrent
    ServiceError               the service's own state; waiting or another replica may help
        QueueFull
        BodyMemoryFull
        Overloaded
        DeadlineExceeded
        NotReady
        InferenceFailed
        IssuerUnavailable
        DatabaseUnavailable

Classes take facts and build the sentence. What a type means in HTTP stands in gateway/errors.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Detail:
    """One thing that is wrong: the field's path, such as ``inputs.3``, and why. No input text."""

    field: str
    reason: str


class KaitenError(Exception):
    """The base: a sentence that may be shown to whoever caused it, and details."""

    def __init__(self, message: str, details: Sequence[Detail] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.details = tuple(details)


class SetupError(KaitenError):
    """The operator can mend it."""


class InvalidSettings(SetupError):
    """Settings that contradict each other or reality."""

    def __init__(self, problems: Sequence[Detail], source: str) -> None:
        lines = "".join(f"\n  {problem.field}: {problem.reason}" for problem in problems)
        super().__init__(f"The settings are not usable ({source}):{lines}", problems)


class ModelNotFound(SetupError):
    """No such model in the store."""

    def __init__(self, tag: str, known: Sequence[str], folder: object = None) -> None:
        have = ", ".join(known) if known else "none"
        place = "" if folder is None else f" {folder}"
        mount = "" if known else "If the store is a volume, check that it is mounted. "
        self.tag = tag
        super().__init__(
            f"Model {tag} is not in the model store{place} (there: {have}). {mount}"
            "Run `make quickstart` for the quickstart model, or `kaiten register FOLDER --name "
            "NAME --version X.Y.Z --task TASK` for yours, and name it in serving.models."
        )


class ModelLost(ModelNotFound):
    """A version that was registered in this store, and whose files are gone."""

    def __init__(self, tag: str, missing: object) -> None:
        SetupError.__init__(
            self, f"{tag} was registered in this store, and {missing} is missing. {restore(tag)}."
        )
        self.tag = tag


def restore(tag: str) -> str:
    """Return what to do about a version whose files are not as they were registered.

    Registering it again would make other bytes of it, with no validation and no promotion.
    """
    return (
        f"Restore {tag} from a copy of its folder: a backup, a `bentoml models export`, or an "
        "image that holds it. Without one, serve another version, or register the model under a "
        "new one. Workers that are running serve on from memory: do not restart them, do not "
        f"delete {tag}, and do not register it again"
    )


class ModelRejected(SetupError):
    """A model that may not be registered or loaded."""

    def __init__(self, field: str, reason: str, remedy: str) -> None:
        super().__init__(f"{field}: {reason}. {remedy}", [Detail(field, reason)])


class DataRejected(SetupError):
    """A file of rows that a version cannot be validated on."""

    def __init__(self, file: object, reason: str, remedy: str) -> None:
        # The message is one line, and file names may hold line ends.
        if not str(file).isprintable():
            file = repr(str(file))
        super().__init__(f"{file}: {reason}. {remedy}", [Detail("data", reason)])


class PromotionRefused(SetupError):
    """A version that may not serve where it was to."""

    def __init__(self, tag: str, reason: str, remedy: str) -> None:
        super().__init__(f"{tag} is not promoted: {reason}. {remedy}", [Detail("version", reason)])


class BuildRefused(SetupError):
    """A bento or an image that can not be made."""


class AuditLogCorrupt(SetupError):
    """The audit log was changed or damaged; nothing is decided from it."""

    def __init__(self, path: object, line: int, reason: str) -> None:
        super().__init__(
            f"The audit log {path} is corrupt: line {line} {reason}. Restore it from a backup; the "
            "log files hold its head after each change (event audit_log_appended).",
            [Detail("audit_log", f"line {line} {reason}")],
        )


class StateBusy(SetupError):
    """Somebody else is changing a model's state."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"Somebody else is changing the state of {name}. Wait for them, and try again."
        )


class StateUnavailable(SetupError):
    """What workers share can not be read or written."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where} can not be used: {reason}.")


class RequestError(KaitenError):
    """The caller can mend it."""


class MalformedBody(RequestError):
    """The body is not JSON."""

    def __init__(self, reason: str) -> None:
        super().__init__("The body is not valid JSON.", [Detail("body", reason)])


class InvalidInput(RequestError):
    """The body is JSON, but not what the route takes."""

    def __init__(self, details: Sequence[Detail]) -> None:
        super().__init__("The request is not valid; see details.", details)


class UnknownVersion(RequestError):
    """The API-Version header names no version of the API."""

    def __init__(self, known: Sequence[str]) -> None:
        reason = f"is not known; known: {', '.join(known)}"
        super().__init__("The API version is not known.", [Detail("API-Version", reason)])


class VersionMismatch(RequestError):
    """The API-Version header contradicts the path, or is sent more than once."""

    def __init__(self, reason: str) -> None:
        super().__init__("The API version is not clear.", [Detail("API-Version", reason)])


class UnsupportedContentType(RequestError):
    """The body's content type is not taken here."""

    def __init__(self) -> None:
        reason = "send application/json"
        super().__init__("The content type is not supported.", [Detail("Content-Type", reason)])


class BodyTooLarge(RequestError):
    """The body is over the limit, in bytes."""

    def __init__(self, limit_bytes: int) -> None:
        reason = f"is over the limit of {limit_bytes} bytes"
        super().__init__("The body is too large.", [Detail("body", reason)])


class UnknownRoute(RequestError):
    """There is no such path."""

    def __init__(self) -> None:
        super().__init__("There is no such route; /docs lists them.")


class MethodNotAllowed(RequestError):
    """The path is there, but not for this method."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self.allowed = tuple(allowed)
        super().__init__(f"The route takes {', '.join(allowed)} only.")


class UnknownModel(RequestError):
    """The model asked for is not served here."""

    def __init__(self, served: Sequence[str]) -> None:
        reason = f"is not served here; served: {', '.join(served)}"
        super().__init__("The model is not served here.", [Detail("model", reason)])


class Unauthenticated(RequestError):
    """No token, or one that does not hold. Says no more, so that it helps no guessing."""

    def __init__(self, *, token_sent: bool) -> None:
        self.token_sent = token_sent
        super().__init__(
            "The bearer token is not valid."
            if token_sent
            else "A bearer token is needed: send Authorization: Bearer TOKEN."
        )


class Forbidden(RequestError):
    """The token holds, but not for this."""

    def __init__(self, scope: str) -> None:
        self.scope = scope
        super().__init__(f"The token lacks the scope {scope}.")


class LoopbackOnly(RequestError):
    """The development secret is in force, and the caller is not on this machine."""

    def __init__(self) -> None:
        super().__init__(
            "The development secret serves callers on this machine only; set KAITEN_AUTH__SECRET."
        )


class CallerGone(RequestError):
    """The caller left before the answer began; only metrics and logs tell of it."""

    def __init__(self) -> None:
        super().__init__("The caller left before the answer.")


class MalformedRequest(RequestError):
    """Headers that contradict each other, or a request that is not HTTP/1.1."""

    def __init__(self, header: str | None = None) -> None:
        if header is None:
            reason = "cannot be parsed; the connection is closed"
            super().__init__("The request is not valid HTTP.", [Detail("request", reason)])
        else:
            reason = "is given more than once, and not alike; send it once"
            super().__init__("The request contradicts itself.", [Detail(header, reason)])


class HeadersTooLarge(RequestError):
    """More headers, or larger ones, than a request may have."""

    def __init__(self, limit: int, unit: str) -> None:
        reason = f"are over the limit of {limit} {unit}"
        super().__init__("The headers are too large.", [Detail("headers", reason)])


class BodyTimeout(RequestError):
    """The body did not arrive in time."""

    def __init__(self, limit_s: float) -> None:
        reason = f"did not arrive within {limit_s:g} seconds"
        super().__init__("The body came too slowly.", [Detail("body", reason)])


class UnsupportedContentEncoding(RequestError):
    """A compressed body, which nothing here inflates."""

    def __init__(self) -> None:
        details = [Detail("Content-Encoding", "send the body as it is, without compression")]
        super().__init__("The content encoding is not supported.", details)


class RateLimited(RequestError):
    """The caller has used up a limit of its own for this window."""

    def __init__(self, limit: str, amount: int, window_s: int, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        reason = f"are limited to {amount} in {window_s} seconds"
        super().__init__("Your limit is reached; try again later.", [Detail(limit, reason)])


class TooManyConcurrent(RequestError):
    """The caller has as many requests under way as it may have."""

    retry_after_s = 1

    def __init__(self, limit: int) -> None:
        reason = f"at most {limit} at once; wait for an answer"
        super().__init__("You have too many requests under way.", [Detail("concurrency", reason)])


class ServiceError(KaitenError):
    """The service's own state."""


class QueueFull(ServiceError):
    """The queue is full, or too long for the request's deadline; nothing of it was queued."""

    def __init__(self, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__("The queue is full; try again later.")


class BodyMemoryFull(ServiceError):
    """Other requests' bodies take the memory that bodies may take; this one was not read."""

    retry_after_s = 1

    def __init__(self) -> None:
        super().__init__("There is no memory for the body now; try again later.")


class Overloaded(ServiceError):
    """The server has as many requests or connections as it can handle; this one was not read."""

    retry_after_s = 1

    def __init__(self) -> None:
        super().__init__("The server is overloaded; try again later.")


class DeadlineExceeded(ServiceError):
    """No answer within the time that the request may take; what had not begun was not computed."""

    def __init__(self, retry_after_s: int = 1) -> None:
        self.retry_after_s = retry_after_s
        super().__init__("No answer within the request's time limit; try again later.")


class NotReady(ServiceError):
    """The model is not warm yet, or its batcher has died."""

    def __init__(self, retry_after_s: int = 5) -> None:
        self.retry_after_s = retry_after_s
        super().__init__("The service is not ready.")


class IssuerUnavailable(ServiceError):
    """The keys of a token's issuer can not be had, so nobody knows whether it holds."""

    def __init__(self, retry_after_s: int = 5) -> None:
        self.retry_after_s = retry_after_s
        super().__init__("The token's issuer can not be reached; try again later.")


class OutOfDescriptors(ServiceError):
    """The server may open no more files, and needs one for the answer; predictions need none."""

    def __init__(self, retry_after_s: int = 2) -> None:
        self.retry_after_s = retry_after_s
        super().__init__("The server may open no more files for now; try again later.")


class DatabaseUnavailable(ServiceError):
    """The database of predictions and labels can not be reached.

    Nothing is kept of what was sent, but where the connection broke just as it was written.
    """

    def __init__(self, retry_after_s: int = 2) -> None:
        self.retry_after_s = retry_after_s
        super().__init__("The database can not be reached; try again later.")


class InferenceFailed(ServiceError):
    """An input failed, alone. The cause is in the log, never in the answer."""

    def __init__(self) -> None:
        super().__init__("The model failed on this input.")


class OutOfMemory(Exception):
    """A batch does not fit into the device's memory. No caller meets it: a part of it may fit."""


class BlankText(Exception):
    """Nothing is left of a text for the model to read; ``index`` is its place among the inputs.

    The gateway answers with InvalidInput, which names the field.
    """

    def __init__(self, index: int) -> None:
        super().__init__(f"input {index} is blank to the model")
        self.index = index
