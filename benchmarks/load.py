"""The load: wrk for the closed loop, our own client for the open one."""

import asyncio
import json
import math
import random
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from benchmarks.client import Answer, Pool, encode

_SCRIPT = Path(__file__).with_name("wrk.lua")
_ANSWER_LIMIT_S = 30
_SEED = 20261122


@dataclass(frozen=True, slots=True)
class Load:
    """What a load brought: whole requests a second, latencies, and what went wrong."""

    requests: int
    requests_s: float
    p50_ms: float
    p99_ms: float
    errors: int


@dataclass(frozen=True, slots=True)
class Target:
    """Where a shape's requests go; ``bodies`` is a file with one JSON body a line."""

    url: str
    bodies: Path
    headers: dict[str, str]


class LoadFailed(Exception):
    """The load generator itself did not work."""


def closed_loop(target: Target, connections: int, seconds: float, first: int = 0) -> Load:
    """Keep each connection busy for so many seconds, starting from the body numbered ``first``."""
    headers = [part for item in target.headers.items() for part in ("-H", ": ".join(item))]
    command = [
        *("wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"),
        *(f"--timeout={_ANSWER_LIMIT_S}s", "-s", str(_SCRIPT), *headers, target.url),
        *("--", str(target.bodies), str(first), str(connections)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return parse_wrk(done.stdout + done.stderr, connections)


def parse_wrk(output: str, connections: int) -> Load:
    """Read the line that wrk.lua printed; LoadFailed if there is none."""
    line = next((row for row in output.splitlines() if row.startswith('{"completed"')), None)
    if line is None:
        raise LoadFailed(f"wrk said: {output[-500:]}")
    # Without a single answer wrk has no percentiles.
    summary = json.loads(line.replace("-nan", "0").replace("nan", "0"))
    after_the_wave = summary["completed"] - connections
    # Less than a wave may all have come at once, and tells no rate.
    if after_the_wave >= connections and summary["span_s"] > 0:
        rate = after_the_wave / summary["span_s"]
    else:
        rate = summary["completed"] / summary["seconds"]
    good = 1 - summary["refused"] / summary["completed"] if summary["completed"] else 0.0
    errors = summary["refused"] + summary["socket_errors"]
    return Load(summary["completed"], rate * good, summary["p50_ms"], summary["p99_ms"], errors)


def arrivals(rate: float, seconds: float, seed: int = _SEED) -> list[float]:
    """Return when requests are meant to be sent, a Poisson process, in seconds from the start."""
    chance = random.Random(seed)
    times: list[float] = []
    at = chance.expovariate(rate)
    while at < seconds:
        times.append(at)
        at += chance.expovariate(rate)
    return times


def open_loop(target: Target, rate: float, seconds: float, first: int = 0) -> Load:
    """Send at a rate whatever the answers do; a latency counts from when a request was due."""
    lines = target.bodies.read_bytes().splitlines()
    bodies = islice(cycle(lines), first % len(lines), None)
    due = arrivals(rate, seconds)
    answers = uvloop.run(_send(target, list(zip(due, bodies, strict=False))))
    latencies = [answer.seconds * 1000 for answer in answers if answer.status // 100 == 2]
    return Load(
        requests=len(due),
        requests_s=len(latencies) / seconds,
        p50_ms=percentile(latencies, 50),
        p99_ms=percentile(latencies, 99),
        errors=len(due) - len(latencies),
    )


async def _send(target: Target, plan: Sequence[tuple[float, bytes]]) -> list[Answer]:
    """Return the answers to requests that are due so many seconds from now; some may be missing."""
    url = urlsplit(target.url)
    port = url.port or 80
    requests = [(due, encode(port, url.path, body, target.headers)) for due, body in plan]
    pool, answers = Pool(port), list[Answer]()
    start = time.monotonic()

    async def ask(due: float, request: bytes) -> None:
        answers.append(await pool.ask(request, start + due))

    tasks = []
    for due, request in requests:
        await asyncio.sleep(max(0.0, start + due - time.monotonic()))
        tasks.append(asyncio.create_task(ask(due, request)))
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=_ANSWER_LIMIT_S)
        for task in late:
            task.cancel()
    await pool.close()
    return answers


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that ``share`` percent of them do not exceed; 0 of none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share / 100) - 1)]
