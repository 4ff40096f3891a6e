"""Where an archive is: a folder, or an address that fsspec knows, such as s3://bucket/prefix.

Credentials come from where the store's own library looks for them, never from the address.
"""

import os
from concurrent.futures import Future
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import known_implementations

from kaiten.errors import Detail, InvalidSettings
from kaiten.files import replace

_FIELD = "profiles.target"
# So that a call that nobody waits for any more ends. s3fs itself tries five times.
_TIMEOUTS = {"connect_timeout": 5, "read_timeout": 10, "retries": {"max_attempts": 0}}
_S3 = {"config_kwargs": _TIMEOUTS, "use_listings_cache": False, "skip_instance_cache": True}
# In a folder: whose measures they are is nobody else's business.
_MODE = 0o600
_OPTIONS: dict[str, dict[str, Any]] = {"s3": _S3, "s3a": _S3}


class Target:
    """Files at an address, by their paths below it."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._writing: Thread | None = None

    def write(self, path: PurePosixPath, content: bytes, limit_s: float) -> None:
        """Write a file, which appears whole. TimeoutError after so many seconds.

        One that takes longer is left to itself, and nothing else is tried before it has ended.
        """
        if self._writing is not None and self._writing.is_alive():
            raise TimeoutError("an earlier write has not ended yet")
        written: Future[None] = Future()
        self._writing = Thread(target=self._write, args=(path, content, written), daemon=True)
        self._writing.start()
        written.result(limit_s)

    def read(self, path: PurePosixPath) -> bytes:
        """Return what a file holds."""
        content: bytes = self._files.cat_file(self._at(path))
        return content

    def names(self, folder: PurePosixPath, kind: str) -> list[str]:
        """Return the names in a folder, sorted, of what is a ``file`` or a ``directory``."""
        try:
            found = self._files.ls(self._at(folder), detail=True)
        except FileNotFoundError:
            return []
        names = (PurePosixPath(each["name"]) for each in found if each["type"] == kind)
        # A store may list the folder itself.
        return sorted(name.name for name in names if name != PurePosixPath(self._at(folder)))

    def _write(self, path: PurePosixPath, content: bytes, written: "Future[None]") -> None:
        try:
            if isinstance(self._files, LocalFileSystem):
                file = Path(self._at(path))
                file.parent.mkdir(parents=True, exist_ok=True)
                replace(file, content, _MODE)
            else:
                self._files.pipe_file(self._at(path), content)
        except BaseException as error:  # noqa: BLE001  it goes to whoever waits
            written.set_exception(error)
        else:
            written.set_result(None)

    @cached_property
    def _opened(self) -> tuple[AbstractFileSystem, str]:
        options = _OPTIONS.get(self._address.partition("://")[0], {})
        files, root = url_to_fs(self._address, **options)
        return files, root

    @property
    def _files(self) -> AbstractFileSystem:
        return self._opened[0]

    def _at(self, path: PurePosixPath) -> str:
        return str(PurePosixPath(self._opened[1]) / path)


def check_target(address: str | None) -> None:
    """Raise InvalidSettings for a target that nothing can be written to from here.

    Whether a store answers is not asked: a start does not depend on it.
    """
    if address is None:
        return
    protocol, separator, _ = address.partition("://")
    reason = _no_protocol(protocol) if separator else _no_folder(Path(address))
    if reason is not None:
        raise InvalidSettings([Detail(_FIELD, reason)], "settings")


def _no_protocol(protocol: str) -> str | None:
    known = known_implementations.get(protocol)
    if known is None:
        return f"{protocol}:// is no kind of address that is known; write a folder, or s3://…"
    package = known["class"].partition(".")[0]
    if find_spec(package) is None:
        return f"{protocol}:// needs the package {package}; install it where the server runs"
    return None


def _no_folder(folder: Path) -> str | None:
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not existing.is_dir():
        return f"{existing} is no folder"
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"{existing} can not be written to by this account"
    return None
