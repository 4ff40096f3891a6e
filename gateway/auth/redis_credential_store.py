"""The credential store in Redis, which several hosts share."""

from typing import Any

from redis import Redis
from redis.exceptions import RedisError, WatchError

from gateway.auth.credentials import Change, Credentials
from kaiten.errors import StateUnavailable

_KEY = "kaiten:credentials"
_WHERE = "Redis (state.redis_url)"
_TIMEOUT_S = 1.0


class RedisCredentials:
    """Keeps the document as one value in Redis; a concurrent change is retried (WATCH)."""

    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(
            url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S
        )
        # The content read last, which is parsed again only if it has changed.
        self._content: bytes | None = None
        self._read = Credentials()

    def read(self) -> Credentials | None:
        try:
            content: Any = self._redis.get(_KEY)
        except RedisError as error:
            raise _unavailable(error) from None
        if content is not None and content != self._content:
            self._read, self._content = Credentials.parsed(content, _WHERE), content
        return None if content is None else self._read

    def change(self, change: Change) -> None:
        try:
            while True:
                with self._redis.pipeline() as pipe:
                    try:
                        pipe.watch(_KEY)  # type: ignore[no-untyped-call]
                        content: Any = pipe.get(_KEY)
                        stored = Credentials.parsed(content, _WHERE) if content else Credentials()
                        changed = change(stored)
                        pipe.multi()
                        pipe.set(_KEY, changed.model_dump_json())
                        pipe.execute()
                    except WatchError:
                        continue
                    return
        except RedisError as error:
            raise _unavailable(error) from None


def _unavailable(error: RedisError) -> StateUnavailable:
    # The message may hold the URL and its password.
    return StateUnavailable(_WHERE, type(error).__name__)
