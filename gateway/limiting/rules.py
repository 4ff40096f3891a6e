"""The limits in force, what a store tells of them, and how the caller is told."""

from typing import NamedTuple, Protocol

from limits import RateLimitItem, parse

from kaiten.errors import Detail, InvalidInput, RateLimited, RequestError, TooManyConcurrent
from kaiten.sections import Limits

# How far a request may overdraw the limit of tokens: about what a CPU computes in one batch.
OVERDRAFT_TOKENS = 512
# A request that is refused for its tokens has been tokenised, at about this share of what computing
# them would have taken.
REFUSED_SHARE = 100
REQUESTS, TOKENS, CONCURRENCY = "requests", "tokens", "concurrency"
Headers = list[tuple[bytes, bytes]]


class Window(NamedTuple):
    """What a subject has used of a limit, and in how many whole seconds it is free again."""

    used: int
    reset_s: int


class Standing(NamedTuple):
    """Where a subject stands, with this request if it was let in.

    ``refused`` is the limit that it has reached; a window is None where there is no limit.
    """

    refused: str | None
    requests: Window | None
    tokens: Window | None


class StoreUnavailable(Exception):
    """A store does not answer, or not in time. Holds the kind of fault and nothing else."""


class Store(Protocol):
    """Counts for subjects, who come as digests; StoreUnavailable where it can not."""

    async def enter(self, subject: str, lease: str) -> Standing:
        """Let a request in and count it, or refuse it and count nothing, in one step."""

    async def reserve(self, subject: str, tokens: int) -> Standing:
        """Charge tokens before they are queued, or refuse them, in one step.

        They are refused if the limit is reached, or would be overdrawn by more than
        OVERDRAFT_TOKENS; then the REFUSED_SHARE-th part is charged. The standing is that of tokens
        alone.
        """

    async def leave(self, subject: str, lease: str, refund: int) -> None:
        """End what entered by this lease, if it did, and give back tokens that were reserved."""

    async def close(self) -> None:
        """Let go of what it holds."""


class Rules:
    """The limits as the library takes them; one that is None is off."""

    def __init__(self, settings: Limits) -> None:
        self.requests = _item(settings.requests, REQUESTS)
        self.tokens = _item(settings.tokens, TOKENS)
        self.concurrency = settings.concurrency
        self._policy = self._describe().encode()

    def refusal(self, standing: Standing) -> RequestError:
        """Return the error for a caller who was refused."""
        if standing.refused == REQUESTS and self.requests and standing.requests:
            return _limited(REQUESTS, self.requests, standing.requests)
        if standing.refused == TOKENS and self.tokens and standing.tokens:
            return _limited(TOKENS, self.tokens, standing.tokens)
        return TooManyConcurrent(self.concurrency or 0)

    def oversized(self, tokens: int) -> RequestError | None:
        """Return the error for a request that no window has room for, None for any other."""
        item = self.tokens
        if item is None or tokens <= item.amount + OVERDRAFT_TOKENS:
            return None
        reason = (
            f"the request has {tokens}, and your limit is {item.amount} in {item.get_expiry()} "
            "seconds; send fewer or shorter texts"
        )
        return InvalidInput([Detail(TOKENS, reason)])

    def headers(self, standing: Standing) -> Headers:
        """Return the fields of draft-ietf-httpapi-ratelimit-headers-10."""
        left = []
        if self.requests and standing.requests:
            left.append(_left(REQUESTS, self.requests, standing.requests))
        if self.tokens and standing.tokens:
            left.append(_left(TOKENS, self.tokens, standing.tokens))
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
