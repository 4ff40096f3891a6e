"""One call over all its tries: what is sent, and whether what came is an end or a reason to wait.

No I/O: the clients send, read and wait, each in its way, and ask here what is next.
"""

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Generic, TypeVar

import httpx

from kaiten_client.calls import Call
from kaiten_client.errors import (
    ConnectionFailed,
    KaitenError,
    RateLimited,
    TimedOut,
    Unauthenticated,
    Unavailable,
)
from kaiten_client.replies import Reply, check_owner, error_of, error_without_reply
from kaiten_client.target import USER_AGENT, Target, check_secret, check_timeout

T = TypeVar("T")
# For the server's own word that time is up, which has the request's id, to come back.
GRACE_S = 0.5
# A host that is gone does not refuse; another try may reach one that is there.
_MAX_CONNECT_S = 5.0
_FIRST_BACKOFF_S = 0.2
_MAX_BACKOFF_S = 5.0
# What the server takes in X-Request-Timeout-Ms.
_MAX_TIMEOUT_MS = 999_999_999
_GATEWAY_STATUSES = (HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT)


@dataclass(frozen=True, slots=True)
class Try:
    """What one try sends, and how long it may take."""

    headers: dict[str, str] = field(repr=False)
    limit_s: float

    @property
    def timeout(self) -> httpx.Timeout:
        """The limits of each step; that of all together, the clients hold."""
        return httpx.Timeout(self.limit_s, connect=min(self.limit_s, _MAX_CONNECT_S))


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """The call has its answer."""

    value: T


@dataclass(frozen=True, slots=True)
class Again:
    """Another try, after so long."""

    wait_s: float


class Exchange(Generic[T]):
    """The state of one call. Its deadline begins here, and holds over all tries and waits."""

    def __init__(self, call: Call[T], target: Target, timeout_s: float | None) -> None:
        limit_s = target.timeout_s if timeout_s is None else check_timeout(timeout_s)
        self.call = call
        self._target = target
        self._due = target.timing.now() + limit_s
        self._retries_left = target.retries if call.authenticated else 0
        self._backoff_s = _FIRST_BACKOFF_S
        self._gateway_failed = False
        self._token: str | None = None
        # The 401 that a token from its source got; another token is tried once.
        self._refused: Unauthenticated | None = None

    @property
    def left_s(self) -> float:
        """What is left until the deadline."""
        return self._due - self._target.timing.now()

    @property
    def is_over(self) -> bool:
        """Whether nothing is waited for any more."""
        return self.left_s + GRACE_S <= 0

    def next_try(self, token: str | None) -> Try:
        """Return what to send; TimedOut at the deadline, the 401 if there is no other token."""
        self._take(token)
        left_s = self.left_s
        if left_s <= 0:
            message = "The time limit has passed before the request could be sent."
            raise TimedOut(message, request_id=self.call.request_id)
        return Try(self._headers(left_s), left_s + GRACE_S)

    def judge(self, outcome: Reply | httpx.RequestError) -> Done[T] | Again:
        """Return the answer or the wait before another try; raise the error where it is the end."""
        request_id = self.call.request_id
        if isinstance(outcome, Reply):
            error = error_of(outcome, request_id)
            if error is None:
                return Done(self._read(outcome))
            # One without a code is a proxy's, which has ids of its own.
            if error.code is not None:
                self._check_owner(outcome, error.request_id)
        else:
            error = error_without_reply(outcome, self._target.url.host, request_id)
            error.__cause__ = outcome
        if self._may_refresh(error):
            return Again(0)
        wait_s = max(0.0, error.retry_after_s or 0) + self._jitter()
        if not self._may_retry(error) or wait_s >= self.left_s:
            raise error
        return Again(wait_s)

    def _read(self, reply: Reply) -> T:
        """Return the answer; UnexpectedAnswer if it is none, or another request's."""
        request_id = self.call.request_id
        self._check_owner(reply, request_id)
        answer = self.call.read(reply, request_id)
        self._check_owner(reply, getattr(answer, "request_id", request_id))
        return answer

    def _check_owner(self, reply: Reply, named: str) -> None:
        if self._target.verify_request_id:
            check_owner(reply, self.call.request_id, named)

    def _take(self, token: str | None) -> None:
        """Keep the token to send; the same that was refused is not sent again."""
        if token is not None:
            try:
                token = check_secret("token", token)
            except ValueError as fault:
                raise Unauthenticated(str(fault), request_id=self.call.request_id) from None
        if self._refused is not None and token == self._token:
            raise self._refused
        self._token = token

    def _headers(self, left_s: float) -> dict[str, str]:
        headers = {
            "Accept": "application/json",
            "User-Agent": USER_AGENT,
            "X-Request-ID": self.call.request_id,
        }
        if not self.call.authenticated:
            return headers
        headers["Content-Type"] = "application/json"
        headers["X-Request-Timeout-Ms"] = str(min(max(1, int(left_s * 1000)), _MAX_TIMEOUT_MS))
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        if self._target.api_key is not None:
            headers["X-API-Key"] = self._target.api_key
        return headers

    def _may_refresh(self, error: KaitenError) -> bool:
        if not isinstance(error, Unauthenticated) or self._refused is not None:
            return False
        self._refused = error
        return self._target.refreshable

    def _may_retry(self, error: KaitenError) -> bool:
        """Tell whether another try may help, and count it."""
        if self._retries_left == 0:
            return False
        self._retries_left -= 1
        if isinstance(error, ConnectionFailed | RateLimited | Unavailable):
            return True
        # Once: these may have cost the server the whole computation.
        first, self._gateway_failed = not self._gateway_failed, True
        return first and error.status in _GATEWAY_STATUSES

    def _jitter(self) -> float:
        """Return a random part of the backoff, which doubles, so that callers do not come as one.

        It comes on top of what the server asks to wait: it asks everybody the same.
        """
        backoff_s, self._backoff_s = self._backoff_s, min(2 * self._backoff_s, _MAX_BACKOFF_S)
        return self._target.timing.uniform(0, backoff_s)
