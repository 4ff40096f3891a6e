"""Mutated requests and tokens, sent to the server's own port."""

import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

import httpx

from benchmarks.client import LOST, Pool
from tests.acceptance.forgeries import Forger, Forgery
from tests.acceptance.mutations import Mutations
from tests.acceptance.places import TWO_WORKERS, WatchedServer, serve
from tests.acceptance.report import Report, console
from tests.acceptance.soak import Slope
from tests.acceptance.target import Target
from tests.acceptance.watch import Watch
from tests.servers import ROOT, Server

SECONDS = 300
SEED = 20261125
LANES = 24
# The first minute is left out of the fit: caches and the allocator find their size.
_WARM_UP = 0.2
_GROWTH_LIMIT = 0.01
# Silence after which the rest of a request is not waited for by us either; nothing is judged by it.
_SILENCE_S = 0.25
_END_LIMIT_S = 30
_PAUSE_S = 0.05
_STATUS = re.compile(rb"^HTTP/1\.1 (\d{3}) ", re.MULTILINE)
_LOG_OF_FAILURE = re.compile(r'Traceback|raised_at|"level": "(error|critical)"|never retrieved')

Kinds = dict[str, Counter[str]]
CaseT = TypeVar("CaseT")


@dataclass
class FuzzResults:
    """How each kind of case ended, by status; ``closed`` is a connection without an answer."""

    requests: Kinds = field(default_factory=dict)
    tokens: Kinds = field(default_factory=dict)
    # Forged tokens that were let in, by kind.
    let_in: list[str] = field(default_factory=list)
    bystander: Counter[str] = field(default_factory=Counter)

    @property
    def failures(self) -> dict[str, int]:
        """What no kind of request may end in: a 5xx, or a connection that never ends."""
        ends = sum([*self.requests.values(), *self.tokens.values(), self.bystander], Counter[str]())
        return {end: count for end, count in ends.items() if end[0] == "5" or end == "hung"}


@dataclass(frozen=True)
class Fuzzer:
    """Throws at one server; ``secret`` is the one that it signs tokens with."""

    target: Target
    secret: bytes
    bystanders_token: str
    seed: int = SEED
    results: FuzzResults = field(default_factory=FuzzResults)

    @classmethod
    def of(cls, server: Server) -> "Fuzzer":
        """Return one for a development server."""
        secret = (Path(server.env["KAITEN_HOME"]) / "development.secret").read_bytes().strip()
        target = Target(int(server.url.rpartition(":")[2]), server.token())
        return cls(target, secret, server.token("bystander", "predict"))

    async def throw(self, cases: int | None = None, seconds: float | None = None) -> FuzzResults:
        """Throw so many cases of either kind, or for so long, with good requests beside them."""
        requests = Mutations(random.Random(self.seed), _originals(self.target))
        tokens = Forger(random.Random(self.seed), self.secret)
        until = time.monotonic() + seconds if seconds is not None else None
        some_requests = _until(islice(iter(requests), cases), until)
        some_tokens = _until(islice(iter(tokens), cases), until)
        pool = Pool(self.target.port)
        async with self._bystander():
            async with asyncio.TaskGroup() as group:
                for _ in range(LANES):
                    group.create_task(self._throw_requests(some_requests))
                    group.create_task(self._throw_tokens(pool, some_tokens))
            await pool.close()
        return self.results

    async def _throw_requests(self, cases: Iterator[tuple[str, bytes]]) -> None:
        for kind, request in cases:
            self.results.requests.setdefault(kind, Counter()).update(
                await _send(self.target.port, request)
            )

    async def _throw_tokens(self, pool: Pool, cases: Iterator[Forgery]) -> None:
        for case in cases:
            answer = await pool.ask(_with_token(self.target, case.token))
            end = "closed" if answer.status == LOST else str(answer.status)
            self.results.tokens.setdefault(case.kind, Counter())[end] += 1
            if end == "200" and not case.signed:
                self.results.let_in.append(case.kind)

    @asynccontextmanager
    async def _bystander(self) -> AsyncIterator[None]:
        """Ask good questions meanwhile, as another caller from another address."""
        done = asyncio.Event()

        async def ask() -> None:
            transport = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
            headers = {"Authorization": f"Bearer {self.bystanders_token}"}
            url = f"http://127.0.0.1:{self.target.port}/api/v1/predict"
            async with httpx.AsyncClient(
                transport=transport, headers=headers, timeout=_END_LIMIT_S
            ) as client:
                while not done.is_set():
                    answer = await client.post(url, json={"text": "Where is my parcel?"})
                    self.results.bystander[str(answer.status_code)] += 1
                    await asyncio.sleep(_PAUSE_S)

        async with asyncio.TaskGroup() as group:
            group.create_task(ask())
            yield
            done.set()


def _until(cases: Iterator[CaseT], end: float | None) -> Iterator[CaseT]:
    for case in cases:
        if end is not None and time.monotonic() >= end:
            return
        yield case


async def _send(port: int, request: bytes) -> list[str]:
    """Send bytes as they are, and return the statuses that come back, or how it ended."""
    received = bytearray()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request)
            await _read(reader, received, _SILENCE_S)
            # The server may wait for the rest of it: there is none.
            if writer.can_write_eof():
                writer.write_eof()
            if not await _read(reader, received, _END_LIMIT_S):
                return ["hung"]
        finally:
            writer.close()
    except OSError:
        pass
    return [status.decode() for status in _STATUS.findall(received)] or ["closed"]


async def _read(reader: asyncio.StreamReader, received: bytearray, silence_s: float) -> bool:
    """Read until the end, and return True, or until nothing has come for so long."""
    try:
        while True:
            async with asyncio.timeout(silence_s):
                part = await reader.read(65_536)
            if not part:
                return True
            received += part
    except TimeoutError:
        return False


def _originals(target: Target) -> list[bytes]:
    paths = ("/livez", "/readyz", "/health", "/metrics", "/docs", "/docs.json", "/schema.json", "/")
    static = "/static_content/favicon-light-32x32.png"
    texts = ["Where is my parcel?", "caf\u00e9 \U0001f600", "a " * 400]
    predict_requests = [
        target.v1(texts[0]),
        target.v2(texts),
        target.v2(texts[1:], X_Request_ID="fuzz"),
    ]
    bento = target.v2(texts[:1]).replace(b"/api/v2/predict", b"/predict", 1)
    return [*predict_requests, bento, *(target.get(path) for path in (*paths, static, "/nope"))]


def _with_token(target: Target, token: bytes) -> bytes:
    head, _, body = target.v1("Where is my parcel?").partition(b"\r\n\r\n")
    usual = f"Authorization: Bearer {target.token}".encode()
    return head.replace(usual, b"Authorization: Bearer " + token) + b"\r\n\r\n" + body


def failures_in(log: list[str]) -> list[str]:
    """Return the lines of a log that tell of a failure of the service itself."""
    return [line for line in log if _LOG_OF_FAILURE.search(line)]


@asynccontextmanager
async def worker_memories(watch: Watch) -> AsyncIterator[dict[int, list[float]]]:
    """Yield what each worker holds, in MiB, once a second."""
    memories_mib: dict[int, list[float]] = {}

    async def look() -> None:
        while True:
            for pid, mib in watch.memory_by_worker_mib().items():
                memories_mib.setdefault(pid, []).append(mib)
            await asyncio.sleep(1)

    looking = asyncio.create_task(look())
    try:
        yield memories_mib
    finally:
        looking.cancel()


async def _server_errors(server: WatchedServer) -> int:
    """Return how many requests to models ended in a 5xx, also those whose caller was gone."""
    async with server.pool() as pool:
        metrics = (await pool.ask(server.target.get("/metrics"))).body.decode()
    rows = re.findall(r'^model_requests_total{.*code="5\d\d".*} (\S+)$', metrics, re.MULTILINE)
    return round(sum(map(float, rows)))


async def run(report: Report, store: Path, folder: Path) -> None:
    seconds = SECONDS * report.scale
    with serve(store, folder, TWO_WORKERS) as server:
        before = {worker.pid for worker in server.watch.workers()}
        async with worker_memories(server.watch) as memory:
            results = await Fuzzer.of(server.server).throw(seconds=seconds)
        after = {worker.pid for worker in server.watch.workers()}
        errors = await _server_errors(server)
        log = list(server.server.process.lines)
    _tell(report, results, log, seconds)
    _check(report, results, log, errors)
    report.check("no worker has died", sorted(after), passed=after == before)
    for number, pid in enumerate(sorted(before), 1):
        _check_memory(report, number, memory[pid])


def _tell(report: Report, results: FuzzResults, log: list[str], seconds: float) -> None:
    for name, kinds in (("requests", results.requests), ("tokens", results.tokens)):
        total = sum(kinds.values(), Counter[str]())
        report.tell(name, seed=SEED, cases=total.total(), ends=dict(sorted(total.items())))
        report.tell(name, **{kind: dict(sorted(ends.items())) for kind, ends in kinds.items()})
    report.tell("beside them", seconds=seconds, statuses=dict(results.bystander))
    # The path of the checkout is not a finding.
    events = Counter(_event(line.replace(str(ROOT), ".")) for line in log)
    report.tell("log", lines=len(log), events=dict(events.most_common(10)))


def _check(report: Report, results: FuzzResults, log: list[str], errors: int) -> None:
    failures = failures_in(log)
    for line in failures[:5]:
        console.print(f"  {line}", markup=False)
    report.check(
        "no answer is a 5xx, and every connection ends",
        results.failures,
        passed=not results.failures and not errors,
    )
    report.check("no forged token is let in", results.let_in, passed=not results.let_in)
    report.check(
        "every good request beside them is answered",
        dict(results.bystander),
        passed=set(results.bystander) == {"200"},
    )
    report.check("no failure in the log", len(failures), passed=not failures)


def _check_memory(report: Report, number: int, memories_mib: list[float]) -> None:
    slope = Slope.of(memories_mib[round(len(memories_mib) * _WARM_UP) :])
    report.tell(
        f"worker {number}",
        memory_mib=slope.mean,
        memory_change=slope.change,
        memory_change_error=slope.error,
        memories=memories_mib[::5],
    )
    report.check(
        f"memory of worker {number} does not grow by more than 1 %, or its noise",
        slope.change,
        passed=slope.change <= max(_GROWTH_LIMIT, 3 * slope.error),
    )


def _event(line: str) -> str:
    try:
        return str(json.loads(line)["event"])
    except (ValueError, KeyError, TypeError):
        return "no JSON"
