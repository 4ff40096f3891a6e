"""Overload at 7 and 20 times the server's capacity, with concurrent probes.

The load and the probes run in separate processes, on the same cores, which they take from the
server: what they leave is the capacity that counts. Timings depend on the load of the machine, so
the checks are about responses and ratios; the report adds the server's CPU time for each refusal.
"""

import asyncio
import http.client
import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from itertools import cycle
from pathlib import Path

import uvloop

from benchmarks.client import Answer, Pool
from benchmarks.load import percentile
from kaiten.cpus import available_cores
from tests.acceptance.load import Load, Offer, closed_loop, open_loop
from tests.acceptance.places import ONE_WORKER, TWO_WORKERS, WatchedServer, serve
from tests.acceptance.report import Report
from tests.acceptance.target import Target
from tests.servers import quickstart_texts

# In seconds, with one worker, on two cores shared with seven other suites.
BEFORE = {
    "one text, kept alive, 7x: longest probe": [9.418, 11.85, 16.21, 12.45],
    "one text, kept alive, 7x: no answer of 12,287": 29,
    "one text, new connections, 7x: longest probe": [5.142, 4.372, 4.359, 4.094],
    "one text, new connections, 7x: no answer of 10,361": 52,
    "one text, new connections, 20x: longest probe": [18.06, 10.39, 10.52, 14.67],
    "one text, new connections, 20x: no answer of 5,940": 329,
    "one text, new connections, 20x: share of capacity": 0.19,
}
_PROBES = ("/livez", "/readyz", "/healthz", "/metrics")
_SECONDS, _CAPACITY_S, _MOST, _DEADLINE_S = 12.0, 5.0, 2500, 30.0
_PROBE_LIMIT_S, _PLATEAU, _PAUSE_S, _PATIENCE_S = 1.0, 0.7, 0.1, 30


@dataclass(frozen=True)
class Case:
    """One overload: texts in a request, multiple of the capacity, fresh connections, workers."""

    texts: int
    times: int
    fresh: bool
    workers: int

    @property
    def name(self) -> str:
        connections = "new connections" if self.fresh else "kept alive"
        return f"{self.texts} texts, {connections}, {self.times}x, {self.workers} workers"

    def requests(self, target: Target) -> Iterator[bytes]:
        texts, headers = quickstart_texts(), {"Connection": "close"} if self.fresh else {}
        if self.texts == 1:
            return cycle([target.v1(text, **headers) for text in texts])
        starts = range(0, len(texts) - self.texts, self.texts)
        return cycle([target.v2(texts[at : at + self.texts], **headers) for at in starts])


CASES = (
    Case(1, 7, fresh=True, workers=1),
    Case(1, 7, fresh=False, workers=1),
    Case(1, 20, fresh=True, workers=1),
    Case(32, 7, fresh=True, workers=1),
    Case(1, 7, fresh=True, workers=2),
    Case(32, 20, fresh=False, workers=2),
)


class FreshPool(Pool):
    """Opens a new connection for each request."""

    async def ask(self, request: bytes, due: float | None = None) -> Answer:
        answer = await super().ask(request, due)
        await self.close()
        return answer


def probe(port: int, path: str, seconds: float) -> list[tuple[float, int]]:
    """Request a path repeatedly on new connections; return seconds and statuses, 0 for none."""
    outcomes, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        start, status = time.monotonic(), 0
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            status = answer.status
        except OSError:
            pass
        finally:
            connection.close()
        outcomes.append((time.monotonic() - start, status))
        time.sleep(_PAUSE_S)
    return outcomes


def offer(target: Target, case: Case, rate: float, seconds: float) -> Load:
    """Send a case's requests at a rate in requests per second."""

    async def send() -> Load:
        pool = (FreshPool if case.fresh else Pool)(target.port)
        try:
            plan = Offer(rate, seconds, _MOST)
            return await open_loop(pool, case.requests(target), plan, lambda: None)
        finally:
            await pool.close()

    return uvloop.run(send())


async def _trial(report: Report, case: Case, server: WatchedServer, seconds: float) -> None:
    async with server.pool() as pool:
        requests = Case(case.texts, 1, fresh=False, workers=1).requests(server.target)
        lanes = 128 if case.texts == 1 else 8
        before = server.watch.usage()
        normal = await closed_loop(pool, requests, lanes, _CAPACITY_S)
        loop_s = (server.watch.usage() - before).loops / max(1, len(normal.accepted))
    capacity = max(normal.rate(), 1 / _CAPACITY_S)
    event_loop, before, started = asyncio.get_running_loop(), server.watch.usage(), time.monotonic()
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(_PROBES) + 1, spawned) as processes:
        probing = [
            event_loop.run_in_executor(processes, probe, server.target.port, path, seconds)
            for path in _PROBES
        ]
        offering = event_loop.run_in_executor(
            processes, offer, server.target, case, case.times * capacity, seconds
        )
        load = await offering
        probes = dict(zip(_PROBES, await asyncio.gather(*probing), strict=True))
    used, elapsed_s = server.watch.usage() - before, time.monotonic() - started
    refused = [answer for answer in load.answers if answer.status != HTTPStatus.OK]
    refusal_ms = 1000 * max(0.0, used.loops - loop_s * len(load.accepted)) / max(1, len(refused))
    report.tell(
        case.name,
        capacity_requests_s=capacity,
        statuses=json.dumps(load.statuses),
        not_sent=load.unsent,
        event_loop_ms_a_request=1000 * loop_s,
        event_loop_ms_a_refusal=refusal_ms,
        accepted_p99_s=load.latency(99),
        refused_p99_s=percentile([answer.done - answer.sent for answer in refused], 99),
        cores_server_others=[used.total / elapsed_s, used.other_processes / elapsed_s],
    )
    available_ratio = 1 - min(0.9, used.other_processes / elapsed_s / available_cores())
    _check(
        report,
        case,
        load,
        probes,
        [load.rate() / capacity, load.rate() / capacity / available_ratio],
    )


def _check(
    report: Report,
    case: Case,
    load: Load,
    probes: Mapping[str, list[tuple[float, int]]],
    shares: list[float],
) -> None:
    silent = load.statuses.get(0, 0)
    report.check(f"{case.name}: requests without an answer", silent, passed=not silent)
    for path, samples in probes.items():
        times = [seconds for seconds, _ in samples]
        report.tell(case.name, **{path: [percentile(times, share) for share in (50, 99, 100)]})
        statuses = Counter(status for _, status in samples)
        worst = max(times)
        report.check(
            f"{case.name}: {path} is 200, longest in seconds",
            [worst, json.dumps(statuses)],
            passed=worst <= _PROBE_LIMIT_S and set(statuses) == {HTTPStatus.OK},
        )
    latest = max((answer.seconds for answer in load.accepted), default=0.0)
    report.check(
        f"{case.name}: longest accepted within its deadline", latest, passed=latest <= _DEADLINE_S
    )
    report.check(
        f"{case.name}: share of capacity, and of what the load's own processes left of it",
        shares,
        passed=shares[1] >= _PLATEAU,
    )


async def run(report: Report, store: Path, folder: Path) -> None:
    """Run each case on a server with its number of workers."""
    for workers, settings in ((1, ONE_WORKER), (2, TWO_WORKERS)):
        with serve(store, folder / str(workers), settings) as server:
            for case in CASES:
                if case.workers == workers:
                    await _trial(report, case, server, _SECONDS * report.scale)
