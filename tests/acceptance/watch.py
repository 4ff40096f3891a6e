"""What a server's processes take, and which of them has which connection."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import psutil

_MIB = 2**20


@dataclass(frozen=True)
class Usage:
    """CPU seconds so far: of the server, its event loops alone, this client, other processes."""

    total: float
    loops: float
    client: float
    other_processes: float

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(
            self.total - other.total,
            self.loops - other.loops,
            self.client - other.client,
            self.other_processes - other.other_processes,
        )


@dataclass(frozen=True)
class Watch:
    """Looks at the processes below a started command."""

    pid: int

    def workers(self) -> list[psutil.Process]:
        """Return the living workers; those that are ending count no more."""
        return [process for process in self._children() if _is_worker(process)]

    def usage(self) -> Usage:
        total = loops = 0.0
        for process in self._children():
            times = process.cpu_times()
            total += times.user + times.system
            if _is_worker(process):
                # The event loop runs on a process's first thread, the engine on others.
                first = next(row for row in process.threads() if row.id == process.pid)
                loops += first.user_time + first.system_time
        client, machine = time.process_time(), psutil.cpu_times()
        busy = sum(machine) - machine.idle - machine.iowait - machine.guest - machine.guest_nice
        return Usage(total, loops, client, busy - client - total)

    def memory_mib(self) -> float:
        """Return the workers' proportional set size: pages that they share count once."""
        return sum(float(worker.memory_full_info().pss) for worker in self.workers()) / _MIB

    def memory_by_worker_mib(self) -> dict[int, float]:
        """Return what each worker has for itself alone, by its process id."""
        return {
            worker.pid: float(worker.memory_full_info().uss) / _MIB for worker in self.workers()
        }

    @asynccontextmanager
    async def sample_memory_mib(self, every_s: float = 1.0) -> AsyncIterator[list[float]]:
        """Yield a list that the memory is added to, again and again."""
        samples = [self.memory_mib()]

        async def look() -> None:
            while True:
                await asyncio.sleep(every_s)
                samples.append(self.memory_mib())

        looking = asyncio.create_task(look())
        try:
            yield samples
        finally:
            looking.cancel()
            samples.append(self.memory_mib())

    def _children(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)


def callers(worker: psutil.Process) -> set[int]:
    """Return the ports from which callers are connected to a worker."""
    return {row.raddr.port for row in worker.net_connections("tcp") if row.raddr}


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "--worker-id" in process.cmdline()
    except psutil.Error:
        return False
