"""Many requests: neither throughput nor memory may slope."""

import random
from collections import Counter
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from tests.acceptance.load import closed_loop
from tests.acceptance.places import WatchedServer, serve
from tests.acceptance.report import Report, console
from tests.servers import quickstart_texts

LANES = 64
REQUESTS = 200_000
WINDOWS = 50
# Left out of the fit: threads, caches and the allocator find their size.
_WARM_UP = 0.1
_SLOPE_LIMIT = 0.03
_SEED = 20261122


@dataclass(frozen=True, slots=True)
class Window:
    """So many requests in a row: how fast, and the memory at their end."""

    requests: int
    seconds: float
    memory_mib: float
    statuses: dict[int, int]

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


@dataclass(frozen=True, slots=True)
class Slope:
    """A line through the windows: its change over the whole fit, relative to its mean."""

    change: float
    error: float
    mean: float

    @classmethod
    def of(cls, values: list[float]) -> "Slope":
        """Fit by least squares; ``error`` is the change's standard error."""
        x = np.arange(len(values), dtype=float)
        y = np.asarray(values, dtype=float)
        centred = x - x.mean()
        slope = float(centred @ y / (centred @ centred))
        rest = y - y.mean() - slope * centred
        variance = float(rest @ rest) / max(1, len(values) - 2) / float(centred @ centred)
        span, mean = len(values) - 1, float(y.mean())
        return cls(slope * span / mean, variance**0.5 * span / mean, mean)


async def send_in_windows(
    server: WatchedServer, requests: int, windows: int = WINDOWS, texts: list[str] | None = None
) -> list[Window]:
    """Send so many requests over connections that stay, and look once a window."""
    texts = texts or quickstart_texts()
    random.Random(_SEED).shuffle(texts)
    bodies = cycle([server.target.v1(text) for text in texts])
    results = []
    async with server.pool() as pool:
        for number in range(1, windows + 1):
            load = await closed_loop(pool, islice(bodies, requests // windows), LANES)
            memory = server.watch.memory_mib()
            results.append(Window(len(load.answers), load.seconds, memory, load.statuses))
            if number % 5 == 0:
                console.print(f"  {number}/{windows}: {results[-1].rate:.0f}/s, {memory:.0f} MiB")
    return results


def count_statuses(windows: list[Window]) -> dict[int, int]:
    """Return how often each status came."""
    return dict(sum((Counter(window.statuses) for window in windows), Counter[int]()))


async def run(report: Report, store: Path, folder: Path) -> None:
    requests = round(REQUESTS * report.scale)
    with serve(store, folder) as server:
        windows = await send_in_windows(server, requests)
    steady_windows = windows[round(len(windows) * _WARM_UP) :]
    rate = Slope.of([window.rate for window in steady_windows])
    memory = Slope.of([window.memory_mib for window in steady_windows])
    statuses = count_statuses(windows)
    report.tell(
        "soak",
        requests=sum(statuses.values()),
        seconds=sum(window.seconds for window in windows),
        statuses=statuses,
        requests_s=rate.mean,
        memory_mib=memory.mean,
        throughput_change=rate.change,
        throughput_change_error=rate.error,
        memory_change=memory.change,
        memory_change_error=memory.error,
        rates=[window.rate for window in windows],
        memories=[window.memory_mib for window in windows],
    )
    report.check("every request is answered", statuses, passed=set(statuses) == {200})
    report.check(
        "throughput does not fall by more than 3 %",
        rate.change,
        passed=rate.change >= -_SLOPE_LIMIT,
    )
    report.check(
        "memory does not grow by more than 3 %", memory.change, passed=memory.change <= _SLOPE_LIMIT
    )
