"""What profiles, drift and quality cost a server: two servers, with them and without, by turns."""

import asyncio
import random
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from statistics import median

import httpx

from benchmarks.client import Pool
from tests.acceptance.load import closed_loop
from tests.acceptance.places import TWO_WORKERS, WatchedServer, serve
from tests.acceptance.report import Report, console
from tests.acceptance.soak import LANES, REQUESTS, WINDOWS, Slope, count_statuses, send_in_windows
from tests.servers import quickstart_texts

_OFF = {"KAITEN_PROFILES__ENABLED": "false", "KAITEN_FEEDBACK__ENABLED": "false"}
_ROUNDS, _ROUND_S, _WARM_UP_S = 10, 10.0, 5.0
_LEAST_THROUGHPUT = 0.95
_MOST_MEMORY_MIB = 150
_MOST_GROWTH = 0.03
_VERDICT_S = 5.0
# Threads, caches and the allocator find their size.
_FIRST_WINDOWS = 0.1
_SEED = 20261128


async def run(report: Report, store: Path, folder: Path) -> None:
    with ExitStack() as stack:
        on = stack.enter_context(serve(store, folder / "on", TWO_WORKERS))
        off = stack.enter_context(serve(store, folder / "off", {**TWO_WORKERS, **_OFF}))
        await _by_turns(report, on, off)
        await _verdicts(report, on)
    # Alone, as another server would only slow it down.
    with serve(store, folder / "soak", TWO_WORKERS) as alone:
        await _growth(report, alone)


async def _by_turns(report: Report, on: WatchedServer, off: WatchedServer) -> None:
    rounds = max(2, round(_ROUNDS * report.scale))
    ratios, memories = [], []
    async with on.pool() as with_them, off.pool() as without:
        pairs = ((with_them, _bodies(on)), (without, _bodies(off)))
        for pool, bodies in pairs:
            await closed_loop(pool, bodies, LANES, _WARM_UP_S)
        for number in range(rounds):
            # The first of a pair alternates as well.
            order = pairs if number % 2 else pairs[::-1]
            rates = {id(pool): await _rate(pool, bodies) for pool, bodies in order}
            ratios.append(rates[id(with_them)] / rates[id(without)])
            memories.append(on.watch.memory_mib() - off.watch.memory_mib())
            console.print(f"  {number + 1}/{rounds}: {ratios[-1]:.3f}, {memories[-1]:+.0f} MiB")
    report.tell("by turns", ratios=ratios, memory_mib=memories)
    share = median(ratios)
    report.check("throughput with them, share of without", share, passed=share >= _LEAST_THROUGHPUT)
    most = max(memories)
    report.check("memory that they take, MiB", most, passed=most <= _MOST_MEMORY_MIB)


async def _verdicts(report: Report, on: WatchedServer) -> None:
    """Measure the delay from a window's end to its verdict, under load."""
    token = on.server.token("operator", "ops")
    headers = {"Authorization": f"Bearer {token}"}
    delays_s: dict[str, float] = {}
    async with (
        on.pool() as pool,
        httpx.AsyncClient(base_url=on.server.url, headers=headers, timeout=60) as operator,
    ):
        loading = asyncio.create_task(closed_loop(pool, _bodies(on), LANES, 3 * _ROUND_S))
        while not loading.done():
            (drift,) = (await operator.get("/ops/drift")).json()["models"]
            if drift["window"]:
                ended = datetime.fromisoformat(drift["window"]["ended_at"])
                seconds = (datetime.now(UTC) - ended).total_seconds()
                delays_s.setdefault(drift["window"]["ended_at"], seconds)
            await asyncio.sleep(0.05)
        await loading
    # The first verdict is older than the load. Rows wait up to a second for their part.
    after = [seconds + 1 for seconds in [*delays_s.values()][1:]]
    report.tell("verdicts", windows=len(after), median_s=median(after), most_s=max(after))
    report.check(
        "from a window's end to its verdict, s", max(after), passed=max(after) < _VERDICT_S
    )


async def _rate(pool: Pool, bodies: Iterator[bytes]) -> float:
    return (await closed_loop(pool, bodies, LANES, _ROUND_S)).rate()


def _bodies(server: WatchedServer) -> Iterator[bytes]:
    texts = quickstart_texts()
    random.Random(_SEED).shuffle(texts)
    return cycle([server.target.v1(text) for text in texts])


async def _growth(report: Report, server: WatchedServer) -> None:
    # Short ones: what monitors keep grows with requests, and not with their length.
    texts = sorted(quickstart_texts(), key=len)[:200]
    windows = await send_in_windows(server, round(REQUESTS * report.scale), WINDOWS, texts)
    steady_windows = windows[round(len(windows) * _FIRST_WINDOWS) :]
    memory = Slope.of([window.memory_mib for window in steady_windows])
    statuses = count_statuses(windows)
    report.tell(
        "growth",
        requests=sum(statuses.values()),
        statuses=statuses,
        memory_mib=memory.mean,
        memory_change=memory.change,
        memory_change_error=memory.error,
        memories=[window.memory_mib for window in windows],
    )
    report.check("every request is answered", statuses, passed=set(statuses) == {200})
    report.check(
        "memory does not grow by more than 3 %", memory.change, passed=memory.change <= _MOST_GROWTH
    )
