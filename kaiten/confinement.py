"""Reads files of an untrusted folder without following links out of it (path traversal).

A symbolic link, a hard link or a special file in the folder can name a file that only the reading
process may read. The folder is opened once, and every path relative to it, one component at a time
with O_NOFOLLOW, so neither a file nor the folder itself can be swapped between check and open
(TOCTOU).
"""

import os
import re
import shutil
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from kaiten.installation import require_unix

_MAX_DEPTH = 32
_MAX_LINKS = 8
_MAX_SHOWN_CHARS = 200
# The Hugging Face cache names its blobs by SHA-1 (git) or SHA-256 (LFS).
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
if sys.platform != "win32":
    _FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    # O_NONBLOCK: opening a FIFO would wait for a writer.
    _FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_COPY = "Put a copy of the file in its place."


class UnsafeFile(Exception):
    """A file that is refused: ``name`` in the folder, the ``reason``, and the ``remedy``."""

    def __init__(self, name: str, reason: str, remedy: str) -> None:
        super().__init__(f"{printable(name)}: {reason}. {remedy}")
        self.name, self.reason, self.remedy = printable(name), reason, remedy


class ConfinedFolder:
    """An untrusted folder; ``names`` lists its files, ``open``, ``read`` and ``copy`` read them.

    Names are relative paths with ``/``. Links to files inside the folder are followed, as are, in a
    snapshot of the Hugging Face cache (``models--owner--name/snapshots/REVISION``), links to blobs
    of the same repository. ``hard_links`` permits files that have another name outside the folder.

    It is a context manager that holds the folder open until its end, whatever its path then names.

    Raises:
        SetupError: From the constructor on Windows, which cannot open a file relative to a folder.
        UnsafeFile: From every method, for a link out of the folder or a special file.
        OSError: From the constructor and every method, for what cannot be read.

    """

    def __init__(self, folder: Path, *, hard_links: bool = False) -> None:
        require_unix("read files of models and data")
        # The path of the folder itself may be a link. Only the targets of links are compared with
        # this path: nothing is opened by it again.
        self._path = folder.resolve()
        self._hard_links = hard_links
        self._inodes: Counter[tuple[int, int]] = Counter()
        self._root = os.open(self._path, _FOLDER_FLAGS)
        self._blobs: int | None = None
        if self._blobs_path is not None:
            # Without the folder, or if it is a link, links to blobs are refused.
            with suppress(OSError):
                self._blobs = os.open("../../blobs", _FOLDER_FLAGS, dir_fd=self._root)

    def close(self) -> None:
        """Close the folder, once; nothing can be read after that."""
        os.close(self._root)
        if self._blobs is not None:
            os.close(self._blobs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def names(self, ignored: Callable[[str], bool] = lambda _: False) -> list[str]:
        """Return the sorted names of all files, including links to files.

        ``ignored`` is called with the name of each file and folder, and skips those it returns true
        for, with everything below them.
        """
        self._inodes.clear()
        statuses = dict(self._walk("", 0, ignored))
        for name, status in statuses.items():
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                with self.open(name):
                    pass
        return sorted(statuses)

    @contextmanager
    def open(self, name: str) -> Iterator[BufferedReader]:
        """Open a file of the folder for reading."""
        place, blob = self._resolved(name)
        with self._parent(name, place, blob=blob) as parent:
            last = PurePosixPath(place).name
            # Checked before it is opened: opening a device can have side effects.
            _check_regular(name, os.stat(last, dir_fd=parent, follow_symlinks=False))
            with os.fdopen(os.open(last, _FILE_FLAGS, dir_fd=parent), "rb") as file:
                status = os.fstat(file.fileno())
                _check_regular(name, status)
                inside = 1 if blob else max(self._inodes[status.st_dev, status.st_ino], 1)
                if status.st_nlink > inside and not self._hard_links:
                    reason = "is a hard link: the same file has a name outside the folder"
                    raise UnsafeFile(name, reason, _COPY)
                yield file

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        with self.open(name) as file:
            return file.read()

    def copy(self, name: str, target: Path) -> None:
        """Copy the content of a file to ``target``, which must not exist yet."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.open(name) as source, target.open("xb") as file:
            shutil.copyfileobj(source, file)

    def _walk(
        self, folder: str, depth: int, ignored: Callable[[str], bool]
    ) -> Iterator[tuple[str, os.stat_result]]:
        if depth > _MAX_DEPTH:
            reason = f"is nested over {_MAX_DEPTH} folders deep"
            raise UnsafeFile(folder, reason, "Remove it, or move it up.")
        with self._folder(folder, folder) as descriptor, os.scandir(descriptor) as scan:
            entries = [(entry.name, entry.stat(follow_symlinks=False)) for entry in scan]
        for entry, status in entries:
            name = f"{folder}/{entry}" if folder else entry
            if ignored(name):
                continue
            if not name.isprintable():
                raise UnsafeFile(name, "has control characters in its name", "Rename it.")
            if stat.S_ISDIR(status.st_mode):
                yield from self._walk(name, depth + 1, ignored)
                continue
            self._inodes[status.st_dev, status.st_ino] += 1
            yield name, status

    def _resolved(self, name: str) -> tuple[str, bool]:
        """Return the path that a file's links lead to, and whether it is a blob of the cache.

        If the path becomes another link before it is opened, ``open`` refuses it.
        """
        place, blob = name, False
        for _ in range(_MAX_LINKS):
            try:
                with self._parent(name, place, blob=blob) as parent:
                    last = PurePosixPath(place).name
                    status = os.stat(last, dir_fd=parent, follow_symlinks=False)
                    if not stat.S_ISLNK(status.st_mode):
                        return place, blob
                    text = os.readlink(last, dir_fd=parent)
            except (FileNotFoundError, NotADirectoryError):
                if place == name:
                    raise
                reason = "links to a file that is missing"
                raise UnsafeFile(name, reason, "Restore it, or remove the link.") from None
            if blob:
                raise _leaves(name, text)
            place, blob = self._target(name, place, text)
        raise UnsafeFile(name, f"is a chain of over {_MAX_LINKS} links", _COPY)

    def _target(self, name: str, place: str, text: str) -> tuple[str, bool]:
        """Return the path that a link names, and whether it is a blob of the cache."""
        # normpath goes up from the link's own folder, which is a real one: see _folder.
        path = Path(os.path.normpath(self._path / PurePosixPath(place).parent / text))
        if path.parent == self._blobs_path and _BLOB.fullmatch(path.name):
            return path.name, True
        if not path.is_relative_to(self._path) or path == self._path:
            raise _leaves(name, text)
        target = path.relative_to(self._path).as_posix()
        if any(part.startswith(".") for part in target.split("/")):
            raise UnsafeFile(name, f"links to the hidden file {printable(target)}", _COPY)
        return target, False

    @property
    def _blobs_path(self) -> Path | None:
        """The blobs folder of a Hugging Face snapshot, None for any other folder."""
        snapshots = self._path.parent
        return snapshots.parent / "blobs" if snapshots.name == "snapshots" else None

    @contextmanager
    def _parent(self, name: str, place: str, *, blob: bool) -> Iterator[int]:
        if blob:
            if self._blobs is None:
                raise UnsafeFile(name, "links to blobs, which is missing or a link", _COPY)
            yield self._blobs
            return
        folder = PurePosixPath(place).parent.as_posix()
        with self._folder(name, "" if folder == "." else folder) as descriptor:
            yield descriptor

    @contextmanager
    def _folder(self, name: str, folder: str) -> Iterator[int]:
        """Open a folder below the root, or the root itself, without following a link."""
        descriptor = os.open(".", _FOLDER_FLAGS, dir_fd=self._root)
        try:
            for part in folder.split("/") if folder else ():
                status = os.stat(part, dir_fd=descriptor, follow_symlinks=False)
                if stat.S_ISLNK(status.st_mode):
                    raise UnsafeFile(name, f"lies in {part}, a link to a folder", _COPY)
                inner = os.open(part, _FOLDER_FLAGS, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)


@contextmanager
def open_file(path: Path) -> Iterator[BufferedReader]:
    """Open the file that a command or a setting names, without following links out of its folder.

    Raises:
        UnsafeFile: It is a link that leaves its folder, or no regular file.
        OSError: It cannot be read.

    """
    with (
        ConfinedFolder(path.parent, hard_links=True) as folder,
        folder.open(path.name) as file,
    ):
        yield file


def printable(name: str) -> str:
    """Return a name for a message: shortened, with control characters escaped."""
    if not name.isprintable():
        name = name.encode("unicode_escape", "backslashreplace").decode()
    return name if len(name) <= _MAX_SHOWN_CHARS else f"{name[:_MAX_SHOWN_CHARS]}..."


def list_names(names: Sequence[str], limit: int) -> str:
    """Return the first names for a message, printable, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(printable, names[:limit])) + more


def _check_regular(name: str, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise UnsafeFile(name, "links to a folder", "Put a copy of the folder in its place.")
    if stat.S_ISLNK(status.st_mode):
        raise UnsafeFile(name, "became a link while it was read", _COPY)
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
        kind = kinds.get(stat.S_IFMT(status.st_mode), "device")
        raise UnsafeFile(name, f"is a {kind} and no regular file", "Remove it.")


def _leaves(name: str, text: str) -> UnsafeFile:
    return UnsafeFile(name, f"is a link that leaves the folder, to {printable(text)}", _COPY)
