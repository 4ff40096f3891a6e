"""State that a server's parent process hands to its workers in inherited memory files.

A restarted worker starts from the snapshot of the one that it replaces, even if files on disk have
changed since, except for rotated signing secrets. No worker has a secret in its environment.
"""

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from kaiten.errors import Detail, InvalidSettings
from kaiten.settings.environment import PREFIX

if sys.platform != "win32":
    # Commands other than `kaiten serve` run on Windows too.
    import resource

# Holds the descriptor of the snapshot, in a worker's environment.
_VARIABLE = f"{PREFIX}SNAPSHOT"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The settings and key files that a worker starts from.

    ``settings`` are nested like kaiten.yaml and include secrets. ``files`` maps the absolute path
    of a key file to its content. ``workers`` is the number of workers, and ``roster`` the
    descriptor of their roster's file.
    """

    settings: Mapping[str, Any] = field(repr=False)
    files: Mapping[str, bytes] = field(repr=False)
    workers: int
    roster: int

    def publish(self) -> None:
        """Write the snapshot to a memory file, outside core dumps, that child processes read."""
        prevent_core_dumps()
        os.environ[_VARIABLE] = str(self.write())

    def write(self) -> int:
        """Write the snapshot to a memory file, and return its descriptor."""
        values = asdict(self)
        # JSON has no bytes; Latin-1 maps each byte to one character.
        values["files"] = {path: text.decode("latin-1") for path, text in self.files.items()}
        return memory_file(json.dumps(values, default=_json_value).encode())

    @classmethod
    def read(cls, descriptor: int) -> "Snapshot":
        """Read a snapshot that ``publish`` wrote.

        Raises:
            OSError: The descriptor cannot be read.
            ValueError: Its content is not a snapshot.

        """
        prevent_core_dumps()
        # pread, because all workers share the file's offset.
        values = json.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
        if not isinstance(values, dict) or values.keys() != cls.__dataclass_fields__.keys():
            raise ValueError("is not a snapshot")
        files = {path: text.encode("latin-1") for path, text in values.pop("files").items()}
        return cls(files=files, **values)


def inherited_snapshot() -> Snapshot | None:
    """Return the snapshot that this process was started with, if any.

    Raises:
        InvalidSettings: The environment names a snapshot that cannot be read.

    """
    descriptor = os.environ.get(_VARIABLE)
    if descriptor is None:
        return None
    try:
        return Snapshot.read(int(descriptor))
    except (OSError, ValueError, TypeError):
        reason = (
            f"{descriptor!r} is not the snapshot of a running server; remove the variable, which a "
            "server sets for its workers only"
        )
        raise InvalidSettings([Detail(_VARIABLE, reason)], "environment") from None


def snapshot_descriptors() -> tuple[int, ...]:
    """Return the descriptors that a process must inherit to read the snapshot."""
    snapshot = inherited_snapshot()
    return () if snapshot is None else (int(os.environ[_VARIABLE]), snapshot.roster)


def release_snapshot() -> None:
    """Close the snapshot after the last read, so that no process started later inherits it."""
    if (descriptor := os.environ.pop(_VARIABLE, None)) is not None:
        os.close(int(descriptor))


def read_key_file(path: Path) -> bytes:
    """Return the content of a key file: in a worker, as the parent process last read it."""
    snapshot = inherited_snapshot()
    content = None if snapshot is None else snapshot.files.get(str(path.absolute()))
    return path.read_bytes() if content is None else content


def replace_key_file(path: Path, content: bytes) -> None:
    """Replace the content of a key file for the processes that are started from now on.

    The descriptor that they inherit names another file at once, so none reads half a snapshot.
    """
    snapshot = inherited_snapshot()
    if snapshot is None:
        return
    files = {**snapshot.files, str(path.absolute()): content}
    descriptor = replace(snapshot, files=files).write()
    os.dup2(descriptor, int(os.environ[_VARIABLE]))
    os.close(descriptor)


def memory_file(content: bytes = b"") -> int:
    """Return the descriptor of an anonymous file, which child processes inherit."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("kaiten")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.write(descriptor, content)
    os.set_inheritable(descriptor, True)  # noqa: FBT003  the library's signature
    return descriptor


def prevent_core_dumps() -> None:
    """Keep the memory of this process, and of those that it starts, out of core dumps.

    The hard limit stays, so that ``prlimit --core`` lets an operator have one. Debuggers and
    profilers of the same account can still attach.
    """
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    # One byte, as Linux passes a core to a program (systemd-coredump) even at a limit of 0, and
    # only at 1 does not (fs/coredump.c). No core fits into either.
    limit = 0 if hard == 0 or sys.platform != "linux" else 1
    # A system may not allow it; the server has to start all the same.
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (limit, hard))


def _json_value(value: object) -> object:
    """Return a setting as a JSON value from which the settings parse it again."""
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
