"""State that a server's parent process hands to its workers in inherited memory files.

A restarted worker starts from the same snapshot as the one it replaces, even if the files on disk
have changed since, and no worker has a secret in its environment.
"""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

if sys.platform != "win32":
    # Commands other than `kaiten serve` run on Windows too.
    import fcntl
    import resource

_POLL_S = 1.0
# env_start and env_end among the fields of /proc/PID/stat that follow the command's name.
_ENVIRONMENT_START, _ENVIRONMENT_END = 47, 48


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

    def write(self) -> int:
        """Write the snapshot to a memory file, outside core dumps, and return the descriptor."""
        prevent_core_dumps()
        values = asdict(self)
        # JSON has no bytes; Latin-1 maps each byte to one character.
        values["files"] = {path: text.decode("latin-1") for path, text in self.files.items()}
        return memory_file(json.dumps(values, default=_plain).encode())

    @classmethod
    def read(cls, descriptor: int) -> "Snapshot":
        """Read a snapshot that ``write`` wrote.

        Raises:
            OSError: The descriptor cannot be read.
            ValueError: Its content is no snapshot.

        """
        prevent_core_dumps()
        # pread, because all workers share the file's offset.
        values = json.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
        if not isinstance(values, dict) or values.keys() != cls.__dataclass_fields__.keys():
            raise ValueError("holds no snapshot")
        files = {path: text.encode("latin-1") for path, text in values.pop("files").items()}
        return cls(files=files, **values)


def _plain(value: object) -> object:
    """Return a setting as a JSON value that the settings parse back to it."""
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


class Roster:
    """The ready workers of a server.

    Each ready worker locks its own byte of a file that all of them inherit. The kernel releases the
    lock when the process ends, however it ends.
    """

    def __init__(self, descriptor: int, workers: int, worker: int) -> None:
        self.workers = workers
        self._file = descriptor
        self._worker = worker
        self._ready = False

    async def publish(self, is_ready: Callable[[], bool]) -> None:
        """Keep this worker's entry up to date until cancelled."""
        while True:
            self.set_ready(ready=is_ready())
            await asyncio.sleep(_POLL_S)

    def set_ready(self, *, ready: bool) -> None:
        """Record whether this worker is ready.

        A reader that holds the byte for a moment makes this fail, so the caller repeats it.
        """
        if ready and not self._ready:
            self._ready = self._lock(self._worker, shared=False)
        elif self._ready and not ready:
            self._ready = False
            self._unlock(self._worker)

    def count_ready(self) -> int:
        """Return how many workers are ready now."""
        # The supervisor numbers restarted workers up to twice as high.
        others = (other for other in range(2 * self.workers) if other != self._worker)
        return self._ready + sum(self._is_held(other) for other in others)

    def _is_held(self, worker: int) -> bool:
        # Shared, so that two concurrent readers do not take each other for the owner.
        if not self._lock(worker, shared=True):
            return True
        self._unlock(worker)
        return False

    def _lock(self, worker: int, *, shared: bool) -> bool:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.lockf(self._file, kind | fcntl.LOCK_NB, 1, worker)
        except BlockingIOError:
            return False
        return True

    def _unlock(self, worker: int) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, worker)


def erase_variables(names: Collection[str]) -> bool:
    """Overwrite the values of variables in this process's initial environment.

    /proc/PID/environ shows the initial environment until the process ends. Remove the variables
    from ``os.environ`` first. Returns False if the system does not permit it.
    """
    try:
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        start, end = int(fields[_ENVIRONMENT_START]), int(fields[_ENVIRONMENT_END])
        with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            at = start
            for entry in memory.read(end - start).split(b"\0"):
                name, _, value = entry.partition(b"=")
                if os.fsdecode(name) in names:
                    memory.seek(at + len(name) + 1)
                    memory.write(bytes(len(value)))
                at += len(entry) + 1
    except (OSError, IndexError):
        return False
    return True
