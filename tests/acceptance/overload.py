"""Three times capacity, offered without waiting for answers."""

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from benchmarks.client import Pool
from benchmarks.load import percentile
from kaiten.cpus import available_cores
from tests.acceptance.load import Load, Offer, closed_loop, open_loop
from tests.acceptance.places import WatchedServer, serve
from tests.acceptance.report import Report
from tests.acceptance.target import Target
from tests.acceptance.watch import Usage
from tests.servers import quickstart_texts

TIMES = 3
_WARM_UP_S, _CAPACITY_S, _FIRST_S, _RECOVERY_S, _NORMAL_WITHIN_S = 4, 15, 10, 6, 2
_DEADLINE_S = 30
# One run against the next differs by more than a tenth on a machine that others use.
_NORMAL_RATE, _NORMAL_LATENCY = 0.85, 1.3
_FLAT = 1.01
_SHARE, _REFUSAL_LIMIT_S = 0.9, 0.001
_SEED = 20261122


@dataclass(frozen=True)
class Case:
    """One kind of request; ``patience_ms`` is how long its callers wait, if not the default."""

    name: str
    texts: int
    lanes: int
    most: int
    seconds: float = 60
    patience_ms: int | None = None

    @property
    def deadline_s(self) -> float:
        return _DEADLINE_S if self.patience_ms is None else self.patience_ms / 1000

    def requests(self, target: Target) -> Iterator[bytes]:
        """Yield its requests over and over."""
        texts = quickstart_texts()
        random.Random(_SEED).shuffle(texts)
        headers = (
            {} if self.patience_ms is None else {"X_Request_Timeout_Ms": str(self.patience_ms)}
        )
        if self.texts == 1:
            return cycle([target.v1(text, **headers) for text in texts])
        starts = range(0, len(texts) - self.texts, self.texts)
        return cycle([target.v2(texts[at : at + self.texts], **headers) for at in starts])


CASES = (
    Case("one text", 1, lanes=128, most=2000),
    Case("32 texts", 32, lanes=8, most=200),
    Case("one text, callers wait 2 s", 1, lanes=128, most=2000, seconds=30, patience_ms=2000),
)


@dataclass
class Trial:
    """One case on one server."""

    case: Case
    server: WatchedServer
    pool: Pool
    report: Report

    async def run(self, scale: float) -> None:
        requests = self.case.requests(self.server.target)
        await closed_loop(self.pool, requests, self.case.lanes, _WARM_UP_S)
        before = self.server.watch.usage()
        normal = await closed_loop(self.pool, requests, self.case.lanes, _CAPACITY_S)
        spent = self.server.watch.usage() - before
        capacity = normal.rate()
        self._tell_normal(normal, spent)
        offer = Offer(TIMES * capacity, self.case.seconds * scale, self.case.most)
        # Connections and buffers find their size, so that what grows after that, grows.
        first = Offer(offer.rate, _FIRST_S * scale, offer.most)
        await open_loop(self.pool, requests, first, lambda: None)
        ends: list[Usage] = []
        looks: list[int] = []
        after: list[asyncio.Task[Load]] = []

        def sent_all() -> None:
            ends.append(self.server.watch.usage())
            looks.append(len(memory))
            # At once, while the queue is still full.
            calm = closed_loop(self.pool, requests, self.case.lanes, _RECOVERY_S)
            after.append(asyncio.create_task(calm))

        before = self.server.watch.usage()
        async with self.server.watch.sample_memory_mib() as memory:
            load = await open_loop(self.pool, requests, offer, sent_all)
            drained_s = time.monotonic() - load.start - load.seconds
            recovery = await after[0]
        used = ends[0] - before
        self._tell_load(load, used)
        self._check_answers(load)
        self._check_capacity(normal, spent, load, used)
        self._check_memory(memory[: looks[0]])
        self._check_recovery(normal, recovery, drained_s)

    def _tell_normal(self, normal: Load, spent: Usage) -> None:
        done = max(1, len(normal.accepted))
        self.report.tell(
            self.case.name,
            capacity_texts_s=normal.rate() * self.case.texts,
            normal_p50_s=normal.latency(50),
            normal_p99_s=normal.latency(99),
            normal_statuses=normal.statuses,
            server_cpu_ms_a_request=1000 * spent.total / done,
            event_loop_ms_a_request=1000 * spent.loops / done,
            normal_cores_server_ours_others=_cores(spent, normal),
        )

    def _tell_load(self, load: Load, used: Usage) -> None:
        late = [answer.sent - answer.due for answer in load.answers]
        self.report.tell(
            self.case.name,
            offered_requests_s=(len(load.answers) + load.unsent) / load.seconds,
            sent=len(load.answers),
            not_sent=load.unsent,
            sent_late_p99_s=percentile(late, 99),
            statuses=load.statuses,
            accepted_texts_s=load.rate() * self.case.texts,
            accepted_p50_s=load.latency(50),
            accepted_p99_s=load.latency(99),
            refused_p50_s=percentile([answer.seconds for answer in load.refused], 50),
            refused_p99_s=percentile([answer.seconds for answer in load.refused], 99),
            connected_late_p99_s=percentile([row.connected - row.sent for row in load.answers], 99),
            event_loop_share=used.loops / load.seconds,
            cores_server_ours_others=_cores(used, load),
        )

    def _check_answers(self, load: Load) -> None:
        name = self.case.name
        failed = load.failed
        counts = f"{len(failed)} others, {len(load.accepted)} answered, {len(load.refused)} refused"
        self.report.check(
            f"{name}: all answered, or refused with Retry-After",
            counts,
            passed=not failed and bool(load.accepted) and bool(load.refused),
        )
        self.report.check(f"{name}: the rate was kept", load.unsent, passed=not load.unsent)
        self.report.check(
            f"{name}: accepted p99 within {self.case.deadline_s:g} s",
            load.latency(99),
            passed=load.latency(99) <= self.case.deadline_s,
        )

    def _check_capacity(self, normal: Load, spent: Usage, load: Load, used: Usage) -> None:
        """Hold the throughput against the capacity, less the share of it that refusals cost.

        A refusal's cost is what the event loop spent beyond its normal cost of the accepted. With
        one-text requests the load's own client takes cores, on the same machine, that the capacity
        was measured with: its part is allowed for, and the report also has the floor without it.
        """
        ended = load.start + load.seconds
        accepted = sum(answer.done < ended for answer in load.accepted)
        refused = sum(answer.done < ended for answer in load.refused)
        edge_s = spent.loops / max(1, len(normal.accepted))
        refusal_s = max(0.0, used.loops - accepted * edge_s) / max(1, refused)
        # Of the cores that the server had at capacity, which others may have shared.
        share = refused * refusal_s / load.seconds / (spent.total / normal.seconds)
        cores_ratio = _server_cores(used, load) / _server_cores(spent, normal)
        strict = _SHARE - (share if self.case.texts == 1 else 0)
        floor = strict - _SHARE * (1 - min(1.0, cores_ratio)) if self.case.texts == 1 else strict
        throughput_ratio = load.rate() / normal.rate()
        shares = (used.total / load.seconds) / (spent.total / normal.seconds)
        self.report.tell(
            self.case.name,
            refusal_cpu_ms=1000 * refusal_s,
            refusals_share=share,
            cores_left_against_capacity=cores_ratio,
            floor=floor,
            floor_without_allowance=strict,
            throughput_a_core_against_capacity=throughput_ratio / shares,
        )
        self.report.check(
            f"{self.case.name}: share of capacity at least its floor",
            [throughput_ratio, floor],
            passed=throughput_ratio >= floor,
        )
        if self.case.texts == 1:
            self.report.check(
                f"{self.case.name}: at most 1 ms of CPU a refusal",
                1000 * refusal_s,
                passed=refusal_s <= _REFUSAL_LIMIT_S,
            )

    def _check_memory(self, memory: list[float]) -> None:
        third = max(1, len(memory) // 3)
        middle, last = memory[third : 2 * third] or memory, memory[-third:]
        growth = (sum(last) / len(last)) / (sum(middle) / len(middle))
        self.report.tell(
            self.case.name,
            memory_mib_before=memory[0],
            memory_mib_most=max(memory),
            memory_mib_after=memory[-1],
        )
        self.report.check(
            f"{self.case.name}: memory flat, its last third against its middle third",
            growth,
            passed=growth <= _FLAT,
        )

    def _check_recovery(self, normal: Load, recovery: Load, drained_s: float) -> None:
        normal_from = recovery.start + _NORMAL_WITHIN_S
        late = [answer.seconds for answer in recovery.accepted if answer.sent >= normal_from]
        refused = [answer for answer in recovery.refused if answer.sent >= normal_from]
        rate = recovery.rate(_NORMAL_WITHIN_S) / normal.rate()
        latency = percentile(late, 50) / normal.latency(50)
        self.report.tell(
            self.case.name, drained_after_s=drained_s, statuses_after=recovery.statuses
        )
        self.report.check(
            f"{self.case.name}: normal 2 s after the end (throughput, p50 against before; refused)",
            [rate, latency, len(refused)],
            passed=rate >= _NORMAL_RATE
            and latency <= _NORMAL_LATENCY
            and not refused
            and not recovery.failed,
        )


def _server_cores(used: Usage, load: Load) -> float:
    """Return the cores that the client left to the server."""
    return available_cores() - used.client / load.seconds


def _cores(used: Usage, load: Load) -> list[float]:
    """Return the cores that were busy: for the server, for this generator, for anyone else."""
    return [part / load.seconds for part in (used.total, used.client, used.other_processes)]


async def run(report: Report, store: Path, folder: Path) -> None:
    """Each case on a server of its own."""
    for number, case in enumerate(CASES):
        with serve(store, folder / str(number)) as server:
            async with server.pool() as pool:
                await Trial(case, server, pool, report).run(report.scale)
