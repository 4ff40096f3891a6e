"""A worker that is killed, and one whose batcher dies, while the other serves on."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from http import HTTPStatus
from itertools import cycle
from pathlib import Path

import psutil

from benchmarks.client import Answer, Pool
from tests.acceptance.fragile_classification.serving import BUG
from tests.acceptance.load import Load, closed_loop
from tests.acceptance.places import TWO_WORKERS, WatchedServer, serve, serve_fragile
from tests.acceptance.report import Report
from tests.acceptance.watch import callers
from tests.servers import quickstart_texts

LANES = 32
# Of the rate that both workers had: one of them alone, less what starting another takes.
_MEANWHILE = 0.25
# What a load brings before and after, in answers: several from each lane.
STEADY = 500
_LIMIT_S = 120


@dataclass(frozen=True)
class LostWorker:
    """The worker that ends, the one that stays, and the ports of the first one's callers."""

    victim: psutil.Process
    other: psutil.Process
    held: set[int]


@dataclass
class Outcome:
    """What a load met that lost one of two workers; ``held`` are the ports of its callers."""

    load: Load
    held: set[int]
    ended: int
    started: int
    ended_at: float
    away_s: float
    ready: Answer
    answered: Answer

    @property
    def bad(self) -> list[Answer]:
        return [answer for answer in self.load.answers if answer.status != HTTPStatus.OK]

    @property
    def failures_elsewhere(self) -> list[Answer]:
        """What failed on connections to the other worker, or to the new one."""
        return [answer for answer in self.bad if answer.port not in self.held]

    @property
    def rate_ratio_meanwhile(self) -> float:
        """What the other worker answered while there was no second one, of both workers' rate."""
        good = [answer for answer in self.load.answers if answer.status == HTTPStatus.OK]
        before = sum(answer.done < self.ended_at for answer in good)
        alone = sum(0 < answer.sent - self.ended_at < self.away_s for answer in good)
        return (alone / self.away_s) / (before / (self.ended_at - self.load.start))

    @property
    def on_one_connection(self) -> int:
        """The most failures that one connection had."""
        ports = [answer.port for answer in self.bad]
        return max(map(ports.count, ports), default=0)


class Steady:
    """A closed loop that runs until it is stopped."""

    def __init__(self, server: WatchedServer, pool: Pool) -> None:
        self._requests = cycle([server.target.v1(text) for text in quickstart_texts()])
        self._sent = self._goal = 0
        self._over = False
        self._reached = asyncio.Event()
        self._server, self._pool = server, pool
        self._loads: list[asyncio.Task[Load]] = []

    async def start(self) -> list[psutil.Process]:
        """Start the lanes, and add some until both workers have callers; return the workers."""
        workers = self._server.watch.workers()
        self._add(LANES)
        async with asyncio.timeout(_LIMIT_S):
            await self.more(LANES)
            # A worker that wakes up takes every connection that waits.
            while not all(map(callers, workers)):
                self._add(1)
                await self.more(LANES)
        return workers

    async def more(self, requests: int) -> None:
        """Wait until so many more requests were sent."""
        self._goal = self._sent + requests
        self._reached.clear()
        async with asyncio.timeout(_LIMIT_S):
            await self._reached.wait()

    async def end(self) -> Load:
        """Return all that it brought."""
        self._over = True
        loads = await asyncio.gather(*self._loads)
        answers = [answer for load in loads for answer in load.answers]
        return Load(loads[0].start, loads[0].seconds, answers)

    def _add(self, lanes: int) -> None:
        load = closed_loop(self._pool, self._unfinished_requests(), lanes)
        self._loads.append(asyncio.create_task(load))

    def _unfinished_requests(self) -> Iterator[bytes]:
        while not self._over:
            self._sent += 1
            if self._sent >= self._goal:
                self._reached.set()
            yield next(self._requests)


async def kill_worker(server: WatchedServer, steady: int = STEADY) -> Outcome:
    """Kill one of two workers under load, and wait for the next."""
    async with server.pool() as pool:
        load = Steady(server, pool)
        victim, other = await load.start()
        await load.more(steady)
        held = callers(victim)
        victim.kill()
        return await _await_replacement(server, load, LostWorker(victim, other, held), steady)


async def break_batcher(
    server: WatchedServer, steady: int = STEADY
) -> tuple[Outcome, Answer, Answer]:
    """Let one of two workers' batchers die by a bug.

    Also return what the request with the bug got, and what readiness said right after it.
    """
    async with server.pool() as pool:
        load = Steady(server, pool)
        workers = await load.start()
        await load.more(steady)
        held = {worker.pid: callers(worker) for worker in workers}
        fatal = await pool.ask(server.target.v1(BUG))
        # The newest connection is used first: it is the one to the worker that is ending.
        red = await pool.ask(server.target.get("/readyz"))
        victim = await _first_ended(workers)
        other = next(worker for worker in workers if worker.pid != victim.pid)
        lost = LostWorker(victim, other, held[victim.pid] | {fatal.port})
        return await _await_replacement(server, load, lost, steady), fatal, red


async def _first_ended(workers: list[psutil.Process]) -> psutil.Process:
    """Return the first that ends by itself."""
    async with asyncio.timeout(_LIMIT_S):
        while True:
            gone, _ = await asyncio.to_thread(psutil.wait_procs, workers, 0.1)
            if gone:
                return gone[0]


async def _await_replacement(
    server: WatchedServer, load: Steady, lost: LostWorker, steady: int
) -> Outcome:
    ended = time.monotonic()
    await asyncio.to_thread(server.wait_for_starts, 3)
    new = next(worker for worker in server.watch.workers() if worker.pid != lost.other.pid)
    ready = await ask_worker(server, new, server.target.get("/readyz"))
    away_s = time.monotonic() - ended
    answered = await ask_worker(server, new, server.target.v1("I forgot my password"))
    await load.more(steady)
    final_load = await load.end()
    return Outcome(final_load, lost.held, lost.victim.pid, new.pid, ended, away_s, ready, answered)


async def ask_worker(server: WatchedServer, worker: psutil.Process, request: bytes) -> Answer:
    """Ask one worker until it does not refuse; connections are made until it takes one."""
    async with asyncio.timeout(_LIMIT_S):
        async with AsyncExitStack() as opened:
            while True:
                # The others stay open, so that this one may meet the other worker.
                pool = await opened.enter_async_context(server.pool())
                answer = await pool.ask(request)
                while answer.port in callers(worker):
                    if answer.status != HTTPStatus.SERVICE_UNAVAILABLE:
                        return answer
                    answer = await pool.ask(request)


def judge(report: Report, name: str, outcome: Outcome) -> None:
    """Check what both kinds of end have in common."""
    load = outcome.load
    report.tell(
        name,
        requests=len(load.answers),
        statuses=load.statuses,
        connections_held=len(outcome.held),
        failures_on_one_connection=outcome.on_one_connection,
        away_s=outcome.away_s,
        share_of_the_rate_meanwhile=outcome.rate_ratio_meanwhile,
        ended_pid=outcome.ended,
        new_pid=outcome.started,
    )
    report.check(
        f"{name}: nothing fails on connections to others",
        len(outcome.failures_elsewhere),
        passed=not outcome.failures_elsewhere,
    )
    report.check(
        f"{name}: the other worker serves on meanwhile",
        outcome.rate_ratio_meanwhile,
        passed=outcome.rate_ratio_meanwhile >= _MEANWHILE,
    )
    report.check(
        f"{name}: another worker is ready and answers",
        [outcome.ready.status, outcome.answered.status],
        passed=outcome.ready.status == outcome.answered.status == HTTPStatus.OK,
    )


async def run(report: Report, store: Path, folder: Path) -> None:
    with serve(store, folder / "killed", TWO_WORKERS) as server:
        outcome = await kill_worker(server)
    judge(report, "kill -9", outcome)
    report.check(
        "kill -9: only what was in flight on the killed one fails, once a connection",
        f"{len(outcome.bad)} on {len(outcome.held)}",
        passed=0 < len(outcome.bad) <= len(outcome.held) and outcome.on_one_connection <= 1,
    )
    with serve_fragile(store, folder / "died", TWO_WORKERS) as server:
        outcome, fatal, red = await break_batcher(server)
        log = server.server.process.log
    judge(report, "batcher died", outcome)
    report.check("batcher died: its request is told 503", fatal.status, passed=fatal.status == 503)
    report.check(
        "batcher died: readiness on its connection is red, or the connection is closed",
        [red.status, red.port == fatal.port],
        passed=red.status in {0, HTTPStatus.SERVICE_UNAVAILABLE} or red.port != fatal.port,
    )
    report.check("batcher died: it is logged", "batcher_died", passed="batcher_died" in log)
