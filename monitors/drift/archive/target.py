"""The target of an archive: a folder, or an address for fsspec, such as s3://bucket/prefix.

The store's own library finds the credentials; they are never part of the address.
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
from kaiten.files import replace_file
from kaiten.installation import extra_remedy, install_command

_FIELD = "profiles.target"
# An abandoned call must end. By default, s3fs tries five times.
_TIMEOUTS = {"connect_timeout": 5, "read_timeout": 10, "retries": {"max_attempts": 0}}
_S3 = {"config_kwargs": _TIMEOUTS, "use_listings_cache": False, "skip_instance_cache": True}
# In a folder: the measures of callers' texts are readable by their owner only.
_MODE = 0o600
_OPTIONS: dict[str, dict[str, Any]] = {"s3": _S3, "s3a": _S3}


class Target:
    """The files below an address, by their relative paths."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._writing: Thread | None = None

    def write(self, path: PurePosixPath, content: bytes, limit_s: float) -> None:
        """Write a file, which appears whole.

        A write that takes too long is abandoned, and no other starts before it has ended.

        Raises:
            TimeoutError: The write takes longer than ``limit_s``, or an earlier one still runs.

        """
        if self._writing is not None and self._writing.is_alive():
            raise TimeoutError("an earlier write has not ended yet")
        written: Future[None] = Future()
        self._writing = Thread(target=self._write, args=(path, content, written), daemon=True)
        self._writing.start()
        written.result(limit_s)

    def read(self, path: PurePosixPath) -> bytes:
        """Return the content of a file."""
        content: bytes = self._files.cat_file(self._at(path))
        return content

    def names(self, folder: PurePosixPath, kind: str) -> list[str]:
        """Return the sorted names of a folder's entries of one kind, ``file`` or ``directory``."""
        try:
            entries = self._files.ls(self._at(folder), detail=True)
        except FileNotFoundError:
            return []
        paths = (PurePosixPath(entry["name"]) for entry in entries if entry["type"] == kind)
        # A store may list the folder itself.
        return sorted(path.name for path in paths if path != PurePosixPath(self._at(folder)))

    def _write(self, path: PurePosixPath, content: bytes, written: "Future[None]") -> None:
        try:
            if isinstance(self._files, LocalFileSystem):
                file = Path(self._at(path))
                file.parent.mkdir(parents=True, exist_ok=True)
                replace_file(file, content, _MODE)
            else:
                self._files.pipe_file(self._at(path), content)
        except BaseException as error:  # noqa: BLE001  passed to the waiting thread
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
    """Check that a target can be written to, without connecting: a start does not depend on it.

    Raises:
        InvalidSettings: The folder or the kind of address cannot be used here.

    """
    if address is None:
        return
    protocol, separator, _ = address.partition("://")
    reason = _protocol_fault(protocol) if separator else _folder_fault(Path(address))
    if reason is not None:
        raise InvalidSettings([Detail(_FIELD, reason)], "settings")


def _protocol_fault(protocol: str) -> str | None:
    implementation = known_implementations.get(protocol)
    if implementation is None:
        return f"{protocol}:// is not a supported kind of address; set a folder, or s3://…"
    package = implementation["class"].partition(".")[0]
    if find_spec(package) is None:
        remedy = extra_remedy("s3") if package == "s3fs" else f"Run: {install_command([package])}"
        return f"{protocol}:// needs the package {package}, which is not installed. {remedy}"
    return None


def _folder_fault(folder: Path) -> str | None:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        return f"{existing} is not a folder; set another folder"
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"{existing} is not writable by this account; set another folder"
    return None
