"""The security log: one line for each event, and a count for repeated ones.

The log's processors (monitors/logging/setup.py) add the request's id and trace, the subject's
pseudonym and the client's address.
"""

import asyncio
import contextvars
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import structlog

from kaiten.addresses import network_of
from kaiten.context import RequestContext, current_or_none
from kaiten.errors import Forbidden, LoopbackOnly, RateLimited, TooManyConcurrent

logger = structlog.get_logger("kaiten.security")
# Operators' actions: no caller can write to it, or crowd a line out of it.
audit_log = structlog.get_logger("kaiten.audit")

# Refusals that are logged wherever they are raised. Code that knows the fault logs the others.
_REFUSALS: Mapping[type[Exception], str] = {
    Forbidden: "forbidden",
    LoopbackOnly: "loopback_refused",
    RateLimited: "rate_limited",
    TooManyConcurrent: "too_many_concurrent",
}
PERIOD_S = 60.0
# Lines of one event and fault from one source in a period; further ones are only counted.
PER_SOURCE = 10
# Sources counted separately in a period; for each fault, further ones share one counter.
MAX_SOURCES = 64
MAX_FAULTS = 32


@dataclass(slots=True)
class _Repeats:
    """How often an event came from a source in this period, and the context of the last request."""

    count: int = 0
    last: contextvars.Context | None = None


class SecurityLog:
    """Writes the first PER_SOURCE events of each kind and source in a period, and counts the rest.

    So unauthenticated requests, from any number of addresses, fill the log at a bounded rate, and
    crowd out no other kind of event.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends = 0.0
        self._sources: dict[tuple[str, str | None, str | None], _Repeats] = {}
        self._others: dict[tuple[str, str | None], _Repeats] = {}
        self._timer: asyncio.TimerHandle | None = None

    def log_event(self, event: str, fault: str | None = None) -> None:
        """Log an event and its fault, which hold no token, no secret and no text of a caller."""
        if self._clock() >= self._ends:
            self.end_period()
        repeats = self._repeats(event, fault)
        repeats.count += 1
        if repeats.count <= PER_SOURCE:
            context = current_or_none()
            logger.warning(event, fault=fault, route=context.route if context else None)
        else:
            repeats.last = contextvars.copy_context()
            self._end_later()

    def end_period(self) -> None:
        """Log how often each event was repeated, and begin a new period."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        counters = [
            ((event, fault), repeats) for (event, fault, _), repeats in self._sources.items()
        ]
        counters += self._others.items()
        self._sources.clear()
        self._others.clear()
        self._ends = self._clock() + PERIOD_S
        for (event, fault), repeats in counters:
            if repeats.last is not None:
                repeats.last.run(_log_repeated, event, fault, repeats.count - PER_SOURCE)

    def _repeats(self, event: str, fault: str | None) -> _Repeats:
        source = _source(current_or_none())
        repeats = self._sources.get((event, fault, source))
        if repeats is None and len(self._sources) < MAX_SOURCES:
            repeats = self._sources[event, fault, source] = _Repeats()
        if repeats is None:
            has_room = (event, fault) in self._others or len(self._others) < MAX_FAULTS
            repeats = self._others.setdefault((event, fault if has_room else None), _Repeats())
        return repeats

    def _end_later(self) -> None:
        """Schedule the end of the period, in case no further event comes."""
        if self._timer is None:
            # Without an event loop, the next event or the end of the process ends the period.
            with suppress(RuntimeError):
                loop = asyncio.get_running_loop()
                delay_s = self._ends - self._clock()
                self._timer = loop.call_later(
                    delay_s, self.end_period, context=contextvars.Context()
                )


def _log_repeated(event: str, fault: str | None, count: int) -> None:
    context = current_or_none()
    route = context.route if context else None
    logger.warning(event, fault=fault, route=route, repeated=count)


def _source(context: RequestContext | None) -> str | None:
    """Return the source of an event: the authenticated subject, else the client's network."""
    if context is None:
        return None
    if context.principal is not None:
        return f"subject {context.principal.identity}"
    return network_of(context.client) if context.client is not None else None


# One for the process, like its log.
security_log = SecurityLog()


def log_event(event: str, fault: str | None = None) -> None:
    """Log a security event of the current request."""
    security_log.log_event(event, fault)


def log_refusal(error: Exception) -> None:
    """Log an error, if it is a refusal that is a security event."""
    event = _REFUSALS.get(type(error))
    if event is not None:
        log_event(event, f"lacks {error.scope}" if isinstance(error, Forbidden) else None)


def log_operator_action(event: str, **facts: object) -> None:
    """Log an operator's action to the audit log, however often it occurs."""
    audit_log.warning(event, fault=None, route=None, **facts)
