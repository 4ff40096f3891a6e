"""Security events: one line each, in one shape; those that repeat are counted.

The line's own processors add what is known of the request: its id, its trace, the subject's
pseudonym and where the caller is (monitors/logs.py).
"""

import asyncio
import contextvars
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import structlog

from kaiten.context import RequestContext, current_or_none
from kaiten.errors import Forbidden, KaitenError, LoopbackOnly, RateLimited, TooManyConcurrent
from kaiten.pseudonyms import network_of

logger = structlog.get_logger("kaiten.security")
# What operators do: no caller can add to it, or push a line out of it.
audit_log = structlog.get_logger("kaiten.audit")

# The refusals that are told wherever they are raised; others are told by who knows the fault.
_REFUSALS: Mapping[type[KaitenError], str] = {
    Forbidden: "forbidden",
    LoopbackOnly: "loopback_refused",
    RateLimited: "rate_limited",
    TooManyConcurrent: "too_many_concurrent",
}
PERIOD_S = 60.0
# Lines of one event and fault from one source in a period; those over it are counted.
PER_SOURCE = 10
# Sources counted separately in a period; any further ones share the lines of one, for each fault.
MAX_SOURCES = 64
MAX_FAULTS = 32


@dataclass(slots=True)
class _Repeats:
    """How often an event came from a source in this period, and the last request it was."""

    count: int = 0
    last: contextvars.Context | None = None


class SecurityLog:
    """Writes the first events of each kind and source in a period, and one line for all others.

    So a stranger's requests, from however many addresses, fill a log at a bounded pace, and no
    other kind of event is lost among them.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends = 0.0
        self._sources: dict[tuple[str, str | None, str | None], _Repeats] = {}
        self._others: dict[tuple[str, str | None], _Repeats] = {}
        self._timer: asyncio.TimerHandle | None = None

    def log_event(self, event: str, fault: str | None = None) -> None:
        """Log what happened, and what was wrong; no token, no secret, no text of a caller's."""
        if self._clock() >= self._ends:
            self.end_period()
        repeats = self._repeats(event, fault)
        repeats.count += 1
        if repeats.count <= PER_SOURCE:
            context = current_or_none()
            logger.warning(event, fault=fault, endpoint=context.endpoint if context else None)
        else:
            repeats.last = contextvars.copy_context()
            self._end_later()

    def end_period(self) -> None:
        """Log how often each event was repeated, and begin again."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        over = [((event, fault), each) for (event, fault, _), each in self._sources.items()]
        over += self._others.items()
        self._sources.clear()
        self._others.clear()
        self._ends = self._clock() + PERIOD_S
        for (event, fault), repeats in over:
            if repeats.last is not None:
                repeats.last.run(_log_repeated, event, fault, repeats.count - PER_SOURCE)

    def _repeats(self, event: str, fault: str | None) -> _Repeats:
        source = _source(current_or_none())
        found = self._sources.get((event, fault, source))
        if found is None and len(self._sources) < MAX_SOURCES:
            found = self._sources[event, fault, source] = _Repeats()
        if found is None:
            known = (event, fault) in self._others or len(self._others) < MAX_FAULTS
            found = self._others.setdefault((event, fault if known else None), _Repeats())
        return found

    def _end_later(self) -> None:
        """Have the period end, although nothing may come after this."""
        if self._timer is None:
            # Outside of a server, the next event or the end of the process tells.
            with suppress(RuntimeError):
                loop = asyncio.get_running_loop()
                delay_s = self._ends - self._clock()
                self._timer = loop.call_later(
                    delay_s, self.end_period, context=contextvars.Context()
                )


def _log_repeated(event: str, fault: str | None, count: int) -> None:
    context = current_or_none()
    endpoint = context.endpoint if context else None
    logger.warning(event, fault=fault, endpoint=endpoint, repeated=count)


def _source(context: RequestContext | None) -> str | None:
    """Return who it comes from: the verified caller, else the network of the address."""
    if context is None:
        return None
    if context.principal is not None:
        return f"subject {context.principal.identity}"
    return network_of(context.client) if context.client is not None else None


# Of this process, as its log is.
security_log = SecurityLog()


def log_event(event: str, fault: str | None = None) -> None:
    """Log a security event of the request at hand."""
    security_log.log_event(event, fault)


def log_refusal(error: KaitenError) -> None:
    """Log a refusal, if it is one that security asks about."""
    event = _REFUSALS.get(type(error))
    if event is not None:
        log_event(event, f"lacks {error.scope}" if isinstance(error, Forbidden) else None)


def log_operator_action(event: str, **facts: object) -> None:
    """Log what an operator did: every act, whatever callers do meanwhile."""
    audit_log.warning(event, fault=None, endpoint=None, **facts)
