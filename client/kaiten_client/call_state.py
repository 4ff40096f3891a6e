"""One call over all its attempts: the headers to send, and the decision after each outcome.

No I/O: the clients send, read and wait, and this module decides the next step.
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
from kaiten_client.replies import Reply, check_request_id, error_from_reply, error_without_reply
from kaiten_client.target import USER_AGENT, ServerTarget, check_secret, check_timeout

T = TypeVar("T")
# Lets the server's own timeout error, which has the request id, arrive.
GRACE_S = 0.5
# A missing host does not refuse a connection; another attempt may reach a live one.
_MAX_CONNECT_S = 5.0
_FIRST_BACKOFF_S = 0.2
_MAX_BACKOFF_S = 5.0
# The largest value that the server accepts in X-Request-Timeout-Ms.
_MAX_TIMEOUT_MS = 999_999_999
_GATEWAY_STATUSES = (HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT)


@dataclass(frozen=True, slots=True)
class Attempt:
    """The headers and the time limit of one attempt."""

    headers: dict[str, str] = field(repr=False)
    limit_s: float

    @property
    def timeout(self) -> httpx.Timeout:
        """The limit of each step; the clients enforce the limit of the whole attempt."""
        return httpx.Timeout(self.limit_s, connect=min(self.limit_s, _MAX_CONNECT_S))


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """The call has succeeded."""

    value: T


@dataclass(frozen=True, slots=True)
class RetryLater:
    """Another attempt is due after ``wait_s``."""

    wait_s: float


class CallState(Generic[T]):
    """The state of one call. Its deadline starts here, and covers all attempts and waits."""

    def __init__(self, call: Call[T], target: ServerTarget, timeout_s: float | None) -> None:
        limit_s = target.timeout_s if timeout_s is None else check_timeout(timeout_s)
        self.call = call
        self._target = target
        self._due = target.timing.now() + limit_s
        self._retries_left = target.retries if call.authenticated else 0
        self._backoff_s = _FIRST_BACKOFF_S
        self._gateway_failed = False
        self._token: str | None = None
        # The 401 for a token from a function; another token is tried once.
        self._refused: Unauthenticated | None = None

    @property
    def left_s(self) -> float:
        """The seconds until the deadline."""
        return self._due - self._target.timing.now()

    @property
    def is_over(self) -> bool:
        """Whether the deadline and the grace period have passed."""
        return self.left_s + GRACE_S <= 0

    def next_attempt(self, token: str | None) -> Attempt:
        """Return the next attempt; TimedOut at the deadline, the 401 if there is no other token."""
        self._set_token(token)
        left_s = self.left_s
        if left_s <= 0:
            message = "The time limit passed before the request was sent."
            raise TimedOut(message, request_id=self.call.request_id)
        return Attempt(self._headers(left_s), left_s + GRACE_S)

    def judge(self, outcome: Reply | httpx.RequestError) -> Done[T] | RetryLater:
        """Return the result or the wait before the next attempt, or raise the final error."""
        request_id = self.call.request_id
        if isinstance(outcome, Reply):
            error = error_from_reply(outcome, request_id)
            if error is None:
                return Done(self._read(outcome))
            # An error without a code comes from a proxy, which has ids of its own.
            if error.code is not None:
                self._check_request_id(outcome, error.request_id)
        else:
            error = error_without_reply(outcome, self._target.url.host, request_id)
            error.__cause__ = outcome
        if self._may_refresh(error):
            return RetryLater(0)
        wait_s = max(0.0, error.retry_after_s or 0) + self._jitter()
        if not self._may_retry(error) or wait_s >= self.left_s:
            raise error
        return RetryLater(wait_s)

    def _read(self, reply: Reply) -> T:
        """Return the result; UnexpectedAnswer if it is malformed or for another request."""
        request_id = self.call.request_id
        self._check_request_id(reply, request_id)
        answer = self.call.read(reply, request_id)
        self._check_request_id(reply, getattr(answer, "request_id", request_id))
        return answer

    def _check_request_id(self, reply: Reply, named: str) -> None:
        if self._target.verify_request_id:
            check_request_id(reply, self.call.request_id, named)

    def _set_token(self, token: str | None) -> None:
        """Set the token to send; a rejected token is not sent again."""
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
        """Return whether another attempt may help, and count it."""
        if self._retries_left == 0:
            return False
        self._retries_left -= 1
        if isinstance(error, ConnectionFailed | RateLimited | Unavailable):
            return True
        # Once: these may have cost the server the whole computation.
        first, self._gateway_failed = not self._gateway_failed, True
        return first and error.status in _GATEWAY_STATUSES

    def _jitter(self) -> float:
        """Return a random part of the backoff, which doubles, so that clients do not synchronize.

        It is added to the wait that the server asks for, which is the same for all clients.
        """
        backoff_s, self._backoff_s = self._backoff_s, min(2 * self._backoff_s, _MAX_BACKOFF_S)
        return self._target.timing.uniform(0, backoff_s)
