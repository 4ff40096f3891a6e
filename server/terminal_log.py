"""The log of a local server as a person at a terminal reads it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from monitors.logging.setup import describe_event

_QUIET_LEVELS = {"debug", "info"}


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line to show; ``time`` (UTC) and ``level`` are empty for output that is not an event."""

    text: str
    time: str = ""
    level: str = ""


class TerminalLog:
    """Shows warnings and errors of the start, each once, and everything after it.

    The start's facts are collected instead: ``workers``, None until it is known, and ``engines``,
    which describes the engine of each model tag.
    """

    def __init__(self, show: Callable[[LogLine], None]) -> None:
        self.workers: int | None = None
        self.engines: dict[str, str] = {}
        self._show = show
        self._shown: set[str] = set()
        self._starting = True

    def end_start(self) -> None:
        """Show everything from now on: the server is ready."""
        self._starting = False

    def handle(self, line: str) -> None:
        """Handle a line that the server wrote."""
        event = _parse_event(line)
        if event is None:
            # A traceback, or a message of BentoML's own command.
            self._show(LogLine(line))
            return
        self._collect(event)
        level, text = str(event.get("level", "")), describe_event(event)
        if self._starting:
            # The parent process and each worker may warn of the same thing.
            if level in _QUIET_LEVELS or text in self._shown:
                return
            self._shown.add(text)
        elif level in _QUIET_LEVELS and str(event.get("logger", "")).startswith("bentoml"):
            return
        self._show(LogLine(text, str(event.get("timestamp", ""))[11:19], level))

    def _collect(self, event: dict[str, Any]) -> None:
        if event["event"] == "configuration_in_force":
            self.workers = event.get("workers")
        elif event["event"] == "engine_chosen":
            engine = f"{event.get('engine')} on {event.get('device')}: {event.get('reason')}"
            self.engines[str(event.get("model"))] = engine


def _parse_event(line: str) -> dict[str, Any] | None:
    """Return the event of a line, None for any other output."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None
