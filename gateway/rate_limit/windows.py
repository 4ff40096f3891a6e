"""The limits in force, the status that a store returns, and the caller's rate-limit headers."""

from typing import NamedTuple, Protocol

from limits import RateLimitItem, parse

from kaiten.errors import Detail, InvalidInput, RateLimited, RequestError, TooManyConcurrent
from kaiten.settings.models import RateLimitSettings

# How far one request may exceed the token limit: about what a CPU computes in one batch.
OVERDRAFT_TOKENS = 512
# A request that is refused for its tokens has been tokenized. One in this many refused tokens is
# charged: about the cost of tokenizing relative to computing.
REFUSED_SHARE = 100
REQUESTS, TOKENS, CONCURRENCY = "requests", "tokens", "concurrency"
Headers = list[tuple[bytes, bytes]]


class Window(NamedTuple):
    """How much of a limit a subject has used, and the whole seconds until the window resets."""

    used: int
    reset_s: int


class LimitStatus(NamedTuple):
    """A subject's use of its limits, including this request if it was admitted.

    ``refused`` is the limit that the subject has reached, or None. A window is None if that limit
    is off.
    """

    refused: str | None
    requests: Window | None
    tokens: Window | None


class StoreUnavailable(Exception):
    """A store did not answer in time, or at all. Its message is the kind of fault and no more."""


class Store(Protocol):
    """Counts the use of each subject, which is identified by a digest.

    Raises:
        StoreUnavailable: From every method but ``close``, if the store cannot count.

    """

    async def acquire(self, subject: str, lease: str) -> LimitStatus:
        """Admit and count a request, or refuse it and count nothing, atomically."""

    async def reserve(self, subject: str, tokens: int) -> LimitStatus:
        """Charge tokens before they are queued, or refuse them, atomically.

        Tokens are refused if the limit is reached, or would be exceeded by more than
        OVERDRAFT_TOKENS. One in REFUSED_SHARE refused tokens is charged. The returned status holds
        the token limit only.
        """

    async def release(self, subject: str, lease: str, refund: int) -> None:
        """End the lease, if it was acquired, and refund reserved tokens."""

    async def close(self) -> None:
        """Close the store's connections."""


class Rules:
    """The limits as ``limits`` parses them; one that is None is off."""

    def __init__(self, settings: RateLimitSettings) -> None:
        self.requests = _item(settings.requests, REQUESTS)
        self.tokens = _item(settings.tokens, TOKENS)
        self.concurrency = settings.concurrency
        self._policy = self._describe().encode()

    def refusal(self, status: LimitStatus) -> RequestError:
        """Return the error for a refused request."""
        if status.refused == REQUESTS and self.requests and status.requests:
            return _limited(REQUESTS, self.requests, status.requests)
        if status.refused == TOKENS and self.tokens and status.tokens:
            return _limited(TOKENS, self.tokens, status.tokens)
        return TooManyConcurrent(self.concurrency or 0)

    def oversized(self, tokens: int) -> RequestError | None:
        """Return the error for tokens over what a whole window permits, None for fewer."""
        item = self.tokens
        if item is None or tokens <= item.amount + OVERDRAFT_TOKENS:
            return None
        reason = (
            f"the request has {tokens}, and your limit is {item.amount} in {item.get_expiry()} "
            "seconds; send fewer or shorter texts"
        )
        return InvalidInput([Detail(TOKENS, reason)])

    def headers(self, status: LimitStatus) -> Headers:
        """Return the header fields of draft-ietf-httpapi-ratelimit-headers-10."""
        left = []
        if self.requests and status.requests:
            left.append(_left(REQUESTS, self.requests, status.requests))
        if self.tokens and status.tokens:
            left.append(_left(TOKENS, self.tokens, status.tokens))
        headers = [(b"ratelimit-policy", self._policy)]
        if left:
            headers.append((b"ratelimit", ", ".join(left).encode()))
        return headers

    def _describe(self) -> str:
        policies = []
        if self.requests:
            policies.append(f'"{REQUESTS}";q={self.requests.amount};w={self.requests.get_expiry()}')
        if self.tokens:
            window = f"w={self.tokens.get_expiry()}"
            policies.append(f'"{TOKENS}";q={self.tokens.amount};{window};qu="tokens"')
        if self.concurrency:
            policies.append(f'"{CONCURRENCY}";q={self.concurrency};qu="concurrent-requests"')
        return ", ".join(policies)


def _item(notation: str | None, namespace: str) -> RateLimitItem | None:
    if notation is None:
        return None
    item = parse(notation)
    return type(item)(item.amount, item.multiples, namespace)


def _limited(name: str, item: RateLimitItem, window: Window) -> RateLimited:
    return RateLimited(name, item.amount, item.get_expiry(), max(1, window.reset_s))


def _left(name: str, item: RateLimitItem, window: Window) -> str:
    return f'"{name}";r={max(0, item.amount - window.used)};t={window.reset_s}'
