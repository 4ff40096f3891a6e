"""JSON logs: one object a line, with the fields of the request, and nothing private.

Libraries that log through the standard library (BentoML, uvicorn) get the same format. A command
logs its warnings as text.
"""

import json
import logging
import sys
import traceback
from collections.abc import Mapping, Sequence
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
# The facts of a start: its configuration, engines and addresses.
_START = "kaiten.start"
# Operators' actions, on credentials and on the versions of models.
_AUDIT_LOGGERS = ("kaiten.audit", "lifecycle.audit_log")
# The fields of every line, of which text shows the event alone.
_COMMON_FIELDS = {"event", "level", "logger", "timestamp"}


def configure_logging(
    settings: LoggingSettings, pseudonyms: Pseudonyms | None = None, worker: int | None = None
) -> None:
    """Send every log of this process to standard error, as JSON.

    A server detaches its console first (monitors/logging/writer.py), so that no request waits for
    it. If a folder is set, requests and security events of a ``worker`` go to its files as well.
    Without ``pseudonyms``, subjects are left out.
    """
    shared = _shared_processors(
        _RequestFields(pseudonyms, whole_addresses=settings.client_addresses)
    )
    formatter = _formatter(shared)
    _log_to(logging.StreamHandler(sys.stderr), formatter, shared)
    _set_levels(settings)
    for name, file in ({} if worker is None else open_files(settings, worker)).items():
        file.setFormatter(formatter)
        _replace_handlers(logging.getLogger(name), file)


def configure_command_logging() -> None:
    """Send a command's warnings to standard error as text; its result is on standard output.

    Operators' actions go to ``audit.log`` alone (add_audit_file): the command itself says what it
    did.
    """
    shared = _shared_processors()
    _log_to(_CommandHandler(), _formatter(shared, _render_text), shared)
    _set_levels(LoggingSettings(level="warning"))
    for name in _AUDIT_LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        _replace_handlers(logger, logging.NullHandler())


def describe_event(event: Mapping[str, Any]) -> str:
    """Return an event as text: its name, and its own fields that have a value."""
    fields = (
        f"{name}={_describe_value(value)}"
        for name, value in event.items()
        if name not in _COMMON_FIELDS and value not in (None, "")
    )
    name = str(event["event"])
    return " ".join([name if name.isprintable() else json.dumps(name), *fields])


def _log_to(
    handler: logging.Handler, formatter: logging.Formatter, shared: Sequence[Processor]
) -> None:
    """Send all logs of this process to one handler."""
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler.setFormatter(formatter)
    logging.captureWarnings(capture=True)
    logging.root.handlers = [handler]


def _shared_processors(*request_fields: Processor) -> list[Processor]:
    """Return the processors of every line, from any library."""
    return [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *request_fields,
        _describe_exception,
        _shorten_asyncio,
    ]


def _formatter(shared: Sequence[Processor], renderer: Processor | None = None) -> logging.Formatter:
    return _CachingFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            renderer or structlog.processors.JSONRenderer(),
        ],
    )


def add_audit_file(folder: Path) -> None:
    """Write operators' actions to ``audit.log`` in a folder as well, which callers cannot fill."""
    file = QueuedFileHandler("audit", RotatingFile(folder / "audit.log"))
    # Operators act outside of requests.
    file.setFormatter(_formatter(_shared_processors()))
    for name in _AUDIT_LOGGERS:
        _replace_handlers(logging.getLogger(name), file)


def _set_levels(settings: LoggingSettings) -> None:
    logging.root.setLevel(logging.WARNING)
    for name in ("kaiten", "server", "gateway", "runners", "monitors", "lifecycle", "bentoml"):
        logging.getLogger(name).setLevel(settings.level.upper())
    # Security and audit events, and the facts of a start, are written at every level.
    for name in (_SECURITY, _AUDIT_LOGGERS[0], _START):
        logging.getLogger(name).setLevel(logging.INFO)
    for name in ("bentoml", "uvicorn", "uvicorn.error", "circus"):
        # They come with handlers and formats of their own.
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
    logging.getLogger("uvicorn.error").addFilter(_is_a_failure)


def _is_a_failure(record: logging.LogRecord) -> bool:
    """Return whether a record is a failure; to uvicorn, a disconnected client is one, too."""
    return not (record.exc_info and isinstance(record.exc_info[1], ClientDisconnected))


def _replace_handlers(logger: logging.Logger, handler: logging.Handler) -> None:
    for replaced in logger.handlers:
        replaced.close()
    logger.handlers = [handler]


class _CachingFormatter(structlog.stdlib.ProcessorFormatter):
    """Formats a record once, for the console and for its file."""

    def format(self, record: logging.LogRecord) -> str:
        line: str | None = getattr(record, "kaiten_line", None)
        if line is None:
            line = super().format(record)
            record.kaiten_line = line
        return line


class _CommandHandler(logging.Handler):
    """Writes to sys.stderr of the moment, which a spinner replaces to keep below the lines."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(f"{self.format(record)}\n")
        except Exception:  # noqa: BLE001  as any handler: a broken console must not end the command
            self.handleError(record)


class _RequestFields:
    """Adds the fields of the request: its id, its trace, and the pseudonym of its subject.

    Security events get the caller's address too, or its network.
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


def _render_text(_: object, __: str, event: EventDict) -> str:
    return f"{event['level']}: {describe_event(event)}"


def _describe_value(value: object) -> str:
    """Return a value as text: JSON quotes spaces, and escapes what a terminal would obey."""
    if isinstance(value, str) and value.isprintable() and " " not in value:
        return value
    return json.dumps(value, default=str)


def _describe_exception(_: object, __: str, event: EventDict) -> EventDict:
    """Replace an exception by its type and the place where it was raised.

    Its message is left out, because it may quote the caller's text.
    """
    info: Any = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    error = info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        event["error"] = type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            # The system's description, without the file name, for instance of a full disk.
            event["fault"] = error.strerror
        event["raised_at"] = [
            f"{frame.filename}:{frame.lineno} in {frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)
        ]
    return event


def _shorten_asyncio(_: object, __: str, event: EventDict) -> EventDict:
    """Keep the first line of asyncio's messages: the next lines quote exceptions' messages."""
    if event.get("logger") == "asyncio":
        event["event"] = str(event["event"]).partition("\n")[0]
    return event
