"""Security events: one line each, in one shape, never sampled.

The line's own processors add what is known of the request: its id, its trace, the subject's
pseudonym and where the caller is (monitors/logs.py).
"""

from collections.abc import Mapping

import structlog

from kaiten.context import current_or_none
from kaiten.errors import Forbidden, KaitenError, LoopbackOnly, RateLimited, TooManyConcurrent

logger = structlog.get_logger("kaiten.security")

# The refusals that are told wherever they are raised; others are told by who knows the fault.
_REFUSALS: Mapping[type[KaitenError], str] = {
    Forbidden: "forbidden",
    LoopbackOnly: "loopback_refused",
    RateLimited: "rate_limited",
    TooManyConcurrent: "too_many_concurrent",
}


def tell(event: str, fault: str | None = None, **facts: object) -> None:
    """Log what happened, and what was wrong; no token, no secret, no text of a caller's."""
    context = current_or_none()
    endpoint = context.endpoint if context else None
    logger.warning(event, fault=fault, endpoint=endpoint, **facts)


def tell_refusal(error: KaitenError) -> None:
    """Log a refusal, if it is one that security asks about."""
    event = _REFUSALS.get(type(error))
    if event is not None:
        tell(event, f"lacks {error.scope}" if isinstance(error, Forbidden) else None)
