"""The limits of each subject, the status that a store returns, and the caller's headers."""

from typing import NamedTuple, Protocol

from limits import RateLimitItem, parse

from kaiten.errors import Detail, InvalidInput, RateLimited, RequestError, TooManyConcurrent
from kaiten.pseudonyms import subject_digest
from kaiten.settings.models import RateLimitPlan, RateLimitSettings

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
    """Counts the use of each subject, and holds it to its rules.

    Raises:
        StoreUnavailable: From every method but ``close``, if the store cannot count.

    """

    async def acquire(self, subject: "LimitedSubject", lease: str) -> LimitStatus:
        """Admit and count a request, or refuse it and count nothing, atomically."""

    async def reserve(self, subject: "LimitedSubject", tokens: int) -> LimitStatus:
        """Charge tokens before they are queued, or refuse them, atomically.

        Tokens are refused if the limit is reached, or would be exceeded by more than
        OVERDRAFT_TOKENS. One in REFUSED_SHARE refused tokens is charged. The returned status holds
        the token limit only.
        """

    async def release(self, subject: "LimitedSubject", lease: str, refund: int) -> None:
        """End the lease, if it was acquired, and refund reserved tokens."""

    async def close(self) -> None:
        """Close the store's connections."""


class Rules:
    """The limits as ``limits`` parses them; one that is None is off."""

    def __init__(self, settings: RateLimitPlan) -> None:
        self.requests = _item(settings.requests, REQUESTS)
        self.tokens = _item(settings.tokens, TOKENS)
        self.concurrency = settings.concurrency
        self._policy = self._describe().encode()

    @property
    def unlimited(self) -> bool:
        """Whether every limit is off."""
        return not (self.requests or self.tokens or self.concurrency)

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


class LimitedSubject(NamedTuple):
    """A subject as stores know it: its digest, and the rules that it is held to."""

    digest: str
    rules: Rules


class SubjectRules:
    """The rules of every subject: those of its plan, or else the default ones."""

    def __init__(self, settings: RateLimitSettings) -> None:
        plans = {name: Rules(settings.plan(name)) for name in settings.plans}
        self._default = Rules(settings)
        self._by_subject = {subject: plans[name] for subject, name in settings.subjects.items()}

    @property
    def unlimited(self) -> bool:
        """Whether no subject has a limit."""
        return all(rules.unlimited for rules in (self._default, *self._by_subject.values()))

    def subject(self, identity: str) -> LimitedSubject:
        """Return a subject with the rules of its plan: its own, or else that of its issuer."""
        issuer = identity.partition("|")[0]
        rules = self._by_subject.get(identity) or self._by_subject.get(f"{issuer}|*")
        return LimitedSubject(subject_digest(identity), rules or self._default)


def _item(notation: str | None, namespace: str) -> RateLimitItem | None:
    if notation is None:
        return None
    item = parse(notation)
    return type(item)(item.amount, item.multiples, namespace)


def _limited(name: str, item: RateLimitItem, window: Window) -> RateLimited:
    return RateLimited(name, item.amount, item.get_expiry(), max(1, window.reset_s))


def _left(name: str, item: RateLimitItem, window: Window) -> str:
    return f'"{name}";r={max(0, item.amount - window.used)};t={window.reset_s}'
