"""JSON logs: one object a line, with the request's id, and nothing private.

Everything that logs through the standard library (BentoML, uvicorn) takes the same form.
"""

import logging
import sys
import traceback
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

from kaiten.context import current_or_none
from kaiten.errors import CallerGone
from kaiten.sections import Logging


def configure(settings: Logging) -> None:
    """Send every log of this process to standard error, as JSON."""
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_request_id,
        _describe_exception,
        _shorten_asyncio,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.captureWarnings(capture=True)
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.WARNING)
    for name in ("kaiten", "gateway", "runners", "monitors", "lifecycle", "bentoml"):
        logging.getLogger(name).setLevel(settings.level.upper())
    for name in ("bentoml", "uvicorn", "uvicorn.error", "circus"):
        # They bring handlers of their own, in forms of their own.
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
    logging.getLogger("uvicorn.error").addFilter(_is_a_failure)


def _is_a_failure(record: logging.LogRecord) -> bool:
    """Tell it from an answer that found its caller gone, which uvicorn takes for one."""
    return not (record.exc_info and isinstance(record.exc_info[1], CallerGone))


def _add_request_id(_: object, __: str, event: EventDict) -> EventDict:
    context = current_or_none()
    if context is not None:
        event["request_id"] = context.request_id
    return event


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
