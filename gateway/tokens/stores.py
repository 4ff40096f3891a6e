"""Where issued and revoked credentials lie: a file of one host, or a Redis of several."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from filelock import FileLock, Timeout
from pydantic import ValidationError
from redis import Redis
from redis.exceptions import RedisError, WatchError

from gateway.tokens.credentials import Credentials, CredentialStore
from kaiten.errors import StateUnavailable
from kaiten.files import replace
from kaiten.sections import State

FILE = "credentials.json"
_KEY = "kaiten:credentials"
_REDIS = "Redis (state.redis_url)"
_PATIENCE_S = 10
_REDIS_TIMEOUT_S = 1.0

logger = structlog.get_logger(__name__)
Change = Callable[[Credentials], Credentials]


def credential_store(home: Path, state: State) -> CredentialStore:
    """Return the store that the settings name."""
    if state.redis_url is None:
        return FileCredentials(home / FILE)
    return RedisCredentials(state.redis_url.get_secret_value())


class FileCredentials:
    """A file, replaced whole; it is read again only where it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._read = Credentials()

    def read(self) -> Credentials:
        try:
            status = self._path.stat()
            seen = status.st_mtime_ns, status.st_ino
            if seen != self._seen:
                self._read = _parsed(self._path.read_bytes(), str(self._path))
                self._seen = seen
        except FileNotFoundError:
            # There is none before the first change, and none is ever removed.
            if self._seen is not None:
                # What was revoked would hold again.
                raise StateUnavailable(str(self._path), "it is gone") from None
        except OSError as error:
            raise StateUnavailable(str(self._path), error.strerror or "unreadable") from None
        return self._read

    def change(self, change: Change) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self._path}.lock", timeout=_PATIENCE_S):
                changed = change(self.read())
                # Whoever can read it could try keys against it: its owner only.
                replace(self._path, f"{changed.model_dump_json()}\n", mode=0o600)
                self._give_to_the_folders_owner()
        except (OSError, Timeout) as error:
            raise StateUnavailable(str(self._path), type(error).__name__) from None

    def _give_to_the_folders_owner(self) -> None:
        """Keep it readable for who serves, where root has changed it."""
        if os.geteuid() == 0:
            owner = self._path.parent.stat()
            for path in (self._path, Path(f"{self._path}.lock")):
                os.chown(path, owner.st_uid, owner.st_gid)


class RedisCredentials:
    """One value in Redis; who changes it at the same time as another tries again.

    A Redis that comes back without it is given what was last read: what was revoked stays so.
    """

    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(
            url, socket_timeout=_REDIS_TIMEOUT_S, socket_connect_timeout=_REDIS_TIMEOUT_S
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
            self._read = _parsed(content, _REDIS)
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


def _parsed(content: bytes | str, where: str) -> Credentials:
    try:
        return Credentials.model_validate_json(content)
    except ValidationError:
        raise StateUnavailable(where, "what it holds is not as it was written") from None


def _unavailable(error: RedisError) -> StateUnavailable:
    # Its text may hold the address, and with it a password.
    return StateUnavailable(_REDIS, type(error).__name__)
