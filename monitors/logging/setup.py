"""JSON logs: one object a line, with what is known of the request, and nothing private.

Everything that logs through the standard library (BentoML, uvicorn) takes the same form.
"""

import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

from kaiten.addresses import canonical_address, network_of
from kaiten.context import current_or_none
from kaiten.errors import ClientDisconnected
from kaiten.pseudonyms import Pseudonyms
from kaiten.settings.models import LoggingSettings
from monitors.logging.rotating_files import QueuedFileHandler, RotatingFile, open_files

_SECURITY = "kaiten.security"
# What operators do: to credentials, and to the versions of models.
_AUDIT, _TRAIL = "kaiten.audit", "lifecycle.audit_log"


def configure(
    settings: LoggingSettings, pseudonyms: Pseudonyms | None = None, worker: int | None = None
) -> None:
    """Send every log of this process to standard error, as JSON.

    A server detaches its console first (monitors/logging/writer.py), so that no request waits for
    it. Requests and security events of a ``worker`` go to its files as well, where there is a
    folder. Subjects are left out where there are no ``pseudonyms``.
    """
    shared = _shared(_RequestFields(pseudonyms, whole_addresses=settings.client_addresses))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    formatter = _formatter(shared)
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(formatter)
    logging.captureWarnings(capture=True)
    logging.root.handlers = [console]
    _set_levels(settings)
    for name, file in ({} if worker is None else open_files(settings, worker)).items():
        file.setFormatter(formatter)
        _replace_handlers(logging.getLogger(name), file)


def _shared(*request_fields: Processor) -> list[Processor]:
    """Return what is done to every line, wherever it comes from."""
    return [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *request_fields,
        _describe_exception,
        _shorten_asyncio,
    ]


def _formatter(shared: Sequence[Processor]) -> logging.Formatter:
    return _OnceFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(),
        ],
    )


def keep_acts(folder: Path) -> None:
    """Write what operators do to ``audit.log`` in a folder as well, which no caller can fill."""
    file = QueuedFileHandler("audit", RotatingFile(folder / "audit.log"))
    # Outside of a request there are no fields to add.
    file.setFormatter(_formatter(_shared()))
    for name in (_AUDIT, _TRAIL):
        _replace_handlers(logging.getLogger(name), file)


def _set_levels(settings: LoggingSettings) -> None:
    logging.root.setLevel(logging.WARNING)
    for name in ("kaiten", "server", "gateway", "runners", "monitors", "lifecycle", "bentoml"):
        logging.getLogger(name).setLevel(settings.level.upper())
    # Whatever level is chosen, what security asks about is written.
    for name in (_SECURITY, _AUDIT):
        logging.getLogger(name).setLevel(logging.INFO)
    for name in ("bentoml", "uvicorn", "uvicorn.error", "circus"):
        # They bring handlers of their own, in forms of their own.
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
    logging.getLogger("uvicorn.error").addFilter(_is_a_failure)


def _is_a_failure(record: logging.LogRecord) -> bool:
    """Tell it from an answer that found its caller gone, which uvicorn takes for one."""
    return not (record.exc_info and isinstance(record.exc_info[1], ClientDisconnected))


def _replace_handlers(logger: logging.Logger, handler: logging.Handler) -> None:
    for each in logger.handlers:
        each.close()
    logger.handlers = [handler]


class _OnceFormatter(structlog.stdlib.ProcessorFormatter):
    """Formats a line once, for the console and for its file."""

    def format(self, record: logging.LogRecord) -> str:
        line: str | None = getattr(record, "kaiten_line", None)
        if line is None:
            line = super().format(record)
            record.kaiten_line = line
        return line


class _RequestFields:
    """Adds what is known of the request: its id, its trace, and the subject by its pseudonym.

    Security events get the caller's address too, or the network that it is in.
    """

    def __init__(self, pseudonyms: Pseudonyms | None, *, whole_addresses: bool) -> None:
        self._pseudonyms = pseudonyms
        self._whole_addresses = whole_addresses

    def __call__(self, _: object, __: str, event: EventDict) -> EventDict:
        context = current_or_none()
        if context is None:
            return event
        event["request_id"] = context.request_id
        if context.trace_id is not None:
            event["trace_id"] = context.trace_id
        if self._pseudonyms is not None and context.principal is not None:
            event["subject"] = self._pseudonyms.of(context.principal.identity)
        if event.get("logger") == _SECURITY and context.client is not None:
            event["client"] = self._address(context.client)
        return event

    def _address(self, client: str) -> str | None:
        return canonical_address(client) if self._whole_addresses else network_of(client)


def _describe_exception(_: object, __: str, event: EventDict) -> EventDict:
    """Replace an exception by its type and where it was raised.

    Its message is left out: it may quote the caller's text.
    """
    info: Any = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    error = info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        event["error"] = type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            # A full disk, say: the system's words, without the file.
            event["fault"] = error.strerror
        event["raised_at"] = [
            f"{frame.filename}:{frame.lineno} in {frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)
        ]
    return event


def _shorten_asyncio(_: object, __: str, event: EventDict) -> EventDict:
    """Keep the first line of what asyncio logs: the next ones quote exceptions' messages."""
    if event.get("logger") == "asyncio":
        event["event"] = str(event["event"]).partition("\n")[0]
    return event
