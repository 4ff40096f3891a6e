"""Where issued and revoked credentials lie: a file of one host, or a Redis of several."""

import os
from pathlib import Path

from filelock import FileLock, Timeout

from gateway.tokens.credentials import Change, Credentials, CredentialStore
from kaiten.errors import StateUnavailable
from kaiten.files import replace
from kaiten.sections import State

FILE = "credentials.json"
_PATIENCE_S = 10


def credential_store(home: Path, state: State) -> CredentialStore:
    """Return the store that the settings name."""
    if state.redis_url is None:
        return FileCredentials(home / FILE)
    # Who shares no Redis loads none.
    from gateway.tokens.in_redis import RedisCredentials  # noqa: PLC0415

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
                self._read = Credentials.parsed(self._path.read_bytes(), str(self._path))
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
