"""Rules, a clock and a watch for the tests of limits."""

from dataclasses import dataclass, field

from gateway.rate_limit.windows import Rules
from kaiten.settings.models import RateLimitSettings


class Clock:
    """Moves only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Watch:
    """What the limits told."""

    limited: list[str] = field(default_factory=list)
    degraded: list[bool] = field(default_factory=list)

    def request_limited(self, limit: str) -> None:
        self.limited.append(limit)

    def limits_degraded(self, *, degraded: bool) -> None:
        self.degraded.append(degraded)


def rules(
    requests: str | None = None, tokens: str | None = None, concurrency: int | None = None
) -> Rules:
    return Rules(RateLimitSettings(requests=requests, tokens=tokens, concurrency=concurrency))
