"""Credential stores: a file for one host, or a Redis for several."""

import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from gateway.auth.credentials import Change, Credentials, CredentialStore
from kaiten.errors import StateUnavailable
from kaiten.files import replace_file
from kaiten.settings.models import StateSettings

FILE = "credentials.json"
_LOCK_TIMEOUT_S = 10


def credential_store(home: Path, state: StateSettings) -> CredentialStore:
    """Return the store that the settings name."""
    if state.redis_url is None:
        return FileCredentials(home / FILE)
    # The Redis client is loaded only if it is used.
    from gateway.auth.redis_credential_store import RedisCredentials  # noqa: PLC0415

    return RedisCredentials(state.redis_url.get_secret_value())


def host_copy(home: Path, state: StateSettings) -> "FileCredentials | None":
    """Return this host's copy of the list in Redis, which Redis may lose; None without a Redis.

    The file's name includes a hash of the URL, so that keys of one Redis never get into another.
    """
    if state.redis_url is None:
        return None
    parts = urlsplit(state.redis_url.get_secret_value())
    place = f"{parts.hostname}:{parts.port}{parts.path}?{parts.query}"
    return FileCredentials(
        home / f"credentials-{hashlib.sha256(place.encode()).hexdigest()[:12]}.json"
    )


class FileCredentials:
    """Keeps the document in a file, replaced atomically and read again only if it has changed.

    A ``private`` file is in a folder of a directory that other accounts can write, such as /tmp. It
    is used only while the folder is this account's with mode 0700: if the folder is deleted,
    another account may make one of the same name.
    """

    def __init__(self, path: Path, *, private: bool = False) -> None:
        self._path, self._private = path, private
        self._seen: tuple[int, int] | None = None
        self._read = Credentials()

    def read(self) -> Credentials | None:
        try:
            self._check_folder()
            status = self._path.stat()
            state = status.st_mtime_ns, status.st_ino
            if state != self._seen:
                self._read = Credentials.parsed(self._path.read_bytes(), str(self._path))
                self._seen = state
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateUnavailable(str(self._path), error.strerror or "unreadable") from None
        return self._read

    def change(self, change: Change) -> None:
        with self._locked():
            self._replace(change(self.read() or Credentials()))

    def merge(self, credentials: Credentials, now: float) -> None:
        """Merge credentials into the file, and replace a corrupt file."""
        with self._locked():
            stored = None
            with suppress(StateUnavailable):
                stored = self.read()
            self._replace(credentials.merged(stored or Credentials(), now))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._path.parent.mkdir(0o700 if self._private else 0o777, parents=True, exist_ok=True)
            self._check_folder()
            with FileLock(f"{self._path}.lock", timeout=_LOCK_TIMEOUT_S):
                yield
        except (OSError, Timeout) as error:
            raise StateUnavailable(str(self._path), type(error).__name__) from None

    def _check_folder(self) -> None:
        if not self._private:
            return
        status = self._path.parent.lstat()
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) != stat.S_IRWXU:
            raise StateUnavailable(str(self._path), "its folder is another account's, or open")

    def _replace(self, credentials: Credentials) -> None:
        # Readable by its owner only: it holds hashes of API keys.
        replace_file(self._path, f"{credentials.model_dump_json()}\n", mode=0o600)
        self._give_to_owner_of_folder()

    def _give_to_owner_of_folder(self) -> None:
        """Keep the file readable for the server's account after root has changed it."""
        if sys.platform != "win32" and os.geteuid() == 0:
            owner = self._path.parent.stat()
            for path in (self._path, Path(f"{self._path}.lock")):
                os.chown(path, owner.st_uid, owner.st_gid)
