"""Rules and a clock for the tests of limits."""

from gateway.rate_limit.windows import Rules
from kaiten.settings.models import RateLimitSettings


class Clock:
    """Moves only when the test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def rules(
    requests: str | None = None, tokens: str | None = None, concurrency: int | None = None
) -> Rules:
    return Rules(RateLimitSettings(requests=requests, tokens=tokens, concurrency=concurrency))
