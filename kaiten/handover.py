"""What the parent process of a server hands to its workers, in memory files that they inherit.

A worker that replaces another starts from the same snapshot, whatever the files on disk hold by
then, and no secret stands in the environment of a worker.
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
# Fields of /proc/PID/stat behind the command's name: where the initial environment lies.
_ENVIRONMENT_START, _ENVIRONMENT_END = 47, 48


def memory_file(content: bytes = b"") -> int:
    """Return the descriptor of a file without a name, which processes started from here inherit."""
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
    """What a worker starts from.

    ``settings`` are nested like kaiten.yaml, secrets included; ``files`` maps the absolute path of
    a key file to its content; ``roster`` is the descriptor of the roster of ``workers`` workers.
    """

    settings: Mapping[str, Any] = field(repr=False)
    files: Mapping[str, bytes] = field(repr=False)
    workers: int
    roster: int

    def write(self) -> int:
        """Write it to a memory file and return the descriptor; none of it gets into core dumps."""
        prevent_core_dumps()
        values = asdict(self)
        # JSON has no bytes, and Latin-1 has a character for each.
        values["files"] = {path: text.decode("latin-1") for path, text in self.files.items()}
        return memory_file(json.dumps(values, default=_plain).encode())

    @classmethod
    def read(cls, descriptor: int) -> "Snapshot":
        """Read what was written; OSError or ValueError where the descriptor holds none."""
        prevent_core_dumps()
        # By position: all workers share one offset.
        values = json.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
        if not isinstance(values, dict) or values.keys() != cls.__dataclass_fields__.keys():
            raise ValueError("holds no snapshot")
        files = {path: text.encode("latin-1") for path, text in values.pop("files").items()}
        return cls(files=files, **values)


def _plain(value: object) -> object:
    """Return a value of the settings as one that JSON has and the settings read alike."""
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


class Roster:
    """Which workers of a server are ready.

    Each ready worker holds a lock on its own byte of a file that all of them inherit. The kernel
    releases the lock when the process ends, however it ends.
    """

    def __init__(self, descriptor: int, workers: int, worker: int) -> None:
        self.workers = workers
        self._file = descriptor
        self._worker = worker
        self._ready = False

    async def keep(self, ready: Callable[[], bool]) -> None:
        """Tell the other workers whether this one is ready, until cancelled."""
        while True:
            self.note(ready=ready())
            await asyncio.sleep(_POLL_S)

    def note(self, *, ready: bool) -> None:
        """Note whether this worker is ready; repeat it, as a reader may be in the way."""
        if ready and not self._ready:
            self._ready = self._lock(self._worker, shared=False)
        elif self._ready and not ready:
            self._ready = False
            self._unlock(self._worker)

    def ready(self) -> int:
        """Return how many workers are ready now."""
        # The supervisor may number one that replaces another up to twice as high.
        others = (other for other in range(2 * self.workers) if other != self._worker)
        return self._ready + sum(self._is_held(other) for other in others)

    def _is_held(self, worker: int) -> bool:
        # Shared, so that two who look at once do not take each other for the owner.
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
    """Overwrite variables in the environment that this process was started with.

    /proc/PID/environ shows that one until the process ends, whatever ``os.environ`` holds. They
    must have left ``os.environ`` before. Returns False where the system does not permit it.
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
