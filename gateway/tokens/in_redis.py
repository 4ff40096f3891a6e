"""Issued and revoked credentials in a Redis that several hosts share."""

from typing import Any

import structlog
from redis import Redis
from redis.exceptions import RedisError, WatchError

from gateway.tokens.credentials import Change, Credentials
from kaiten.errors import StateUnavailable

logger = structlog.get_logger(__name__)
_KEY = "kaiten:credentials"
_WHERE = "Redis (state.redis_url)"
_TIMEOUT_S = 1.0


class RedisCredentials:
    """One value in Redis; who changes it at the same time as another tries again.

    A Redis that comes back without it is given what was last read: what was revoked stays so.
    """

    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(
            url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S
        )
        self._read: Credentials | None = None

    def read(self) -> Credentials:
        try:
            content: Any = self._redis.get(_KEY)
            if content is None and self._read is not None:
                # Whatever another has put there meanwhile stays.
                if self._redis.set(_KEY, self._read.model_dump_json(), nx=True):
                    logger.warning("credentials_given_back")
                content = self._redis.get(_KEY)
        except RedisError as error:
            raise _unavailable(error) from None
        if content is not None:
            self._read = Credentials.parsed(content, _WHERE)
        return self._read or Credentials()

    def change(self, change: Change) -> None:
        try:
            while True:
                with self._redis.pipeline() as pipe:
                    try:
                        pipe.watch(_KEY)  # type: ignore[no-untyped-call]
                        changed = change(self.read())
                        pipe.multi()
                        pipe.set(_KEY, changed.model_dump_json())
                        pipe.execute()
                    except WatchError:
                        continue
                    return
        except RedisError as error:
            raise _unavailable(error) from None


def _unavailable(error: RedisError) -> StateUnavailable:
    # Its text may hold the address, and with it a password.
    return StateUnavailable(_WHERE, type(error).__name__)
