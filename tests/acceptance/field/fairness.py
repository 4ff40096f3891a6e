"""Fairness: a light caller's latency and refusals beside heavy callers, and total throughput.

Latencies are of a light caller that asks again at once. It asks 30 times as often as before, as it
is answered so much earlier, and a request of one text costs more than a text of a heavy one. So
that before and now do the same work, throughput is measured beside one that asks ten times a
second, in alternating rounds.
"""

import asyncio
import io
import subprocess
import tarfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from itertools import cycle
from pathlib import Path
from statistics import median

from benchmarks.client import Answer, Pool
from benchmarks.load import percentile
from gateway.auth.minting import mint
from kaiten.settings.models import AuthSettings
from tests.acceptance.places import WatchedServer, serve
from tests.acceptance.report import Report
from tests.acceptance.target import Target
from tests.servers import ROOT, quickstart_texts

BEFORE: Mapping[str, object] = {
    "light_alone_p50_s": 0.013,
    "beside_1_heavy_p50_s": 0.35,
    "beside_16_heavy_p50_s": 2.1,
    "beside_16_heavy_long_p50_s": 11,
}
_BASE = "d62cd7b"
_BASE_PARTS = ("service.py", "kaiten.yaml", "configuration.yaml", "bentofile.yaml", "README.md")
_FOLDERS = ("cli", "server", "gateway", "runners", "monitors", "lifecycle", "kaiten")
_TEXTS, _SECONDS, _WARM_UP_S, _RETRY_S = 256, 8.0, 2.0, 0.05
_ROUNDS, _LIGHT_EVERY_S = 3, 0.1
_TIMES, _SHARE = 3.0, 0.95
_SECRET = "0123456789abcdef" * 4
_SETTINGS = {"KAITEN_AUTH__SECRET": _SECRET}


@dataclass(frozen=True)
class Case:
    """Heavy callers: their connections, their subjects, and whether their texts are long."""

    name: str
    connections: int
    subjects: int
    long: bool = False


CASES = (
    Case("1 heavy, short", 1, 1),
    Case("1 heavy, long", 1, 1, long=True),
    Case("4 heavy, short", 4, 4),
    Case("4 heavy, long", 4, 4, long=True),
    Case("16 heavy, short", 16, 16),
    Case("16 heavy, long", 16, 16, long=True),
    Case("1 heavy over 16 connections, short", 16, 1),
)


@dataclass(frozen=True)
class CaseFigures:
    """The figures of one case.

    ``light_s`` is the number of the light caller's requests answered per second, ``texts_s`` that
    of computed texts, and ``cpu_ms`` the server's CPU time for each computed text.
    """

    p50_s: float
    refused: int
    light_s: float
    texts_s: float
    cpu_ms: float


class Callers:
    """The callers of one server, by subject."""

    def __init__(self, server: WatchedServer) -> None:
        self._served = server
        self._targets: dict[str, Target] = {}
        self._texts = quickstart_texts()

    def caller(self, subject: str) -> Target:
        if subject not in self._targets:
            token = mint(subject, ["predict"], timedelta(hours=1), AuthSettings(), _SECRET)
            self._targets[subject] = Target(self._served.target.port, token)
        return self._targets[subject]

    async def light_beside_light(self, seconds: float) -> float:
        """Return a light caller's p50 latency beside another light caller, in seconds."""
        async with self._served.pool() as pool:
            first, _ = await asyncio.gather(
                self._light(pool, "light", seconds), self._light(pool, "other", seconds)
            )
        return percentile([answer.seconds for answer in first], 50)

    async def light_beside_heavy(
        self, case: Case, seconds: float, every_s: float = 0
    ) -> CaseFigures:
        async with self._served.pool() as pool:
            ends = time.monotonic() + _WARM_UP_S + seconds
            heavy = [
                asyncio.create_task(self._heavy(pool, f"heavy-{n % case.subjects}", case, ends))
                for n in range(case.connections)
            ]
            await asyncio.sleep(_WARM_UP_S)
            light_task = asyncio.create_task(self._light(pool, "light", seconds, every_s))
            before, used = await self._computed_texts(pool), self._served.watch.usage()
            started = time.monotonic()
            # The light caller's last answer, awaited below, may come seconds after the load.
            await asyncio.sleep(seconds)
            texts = await self._computed_texts(pool) - before
            cpu_s = (self._served.watch.usage() - used).total
            elapsed_s = time.monotonic() - started
            light = await light_task
            for task in heavy:
                await task
        answered = [answer.seconds for answer in light if answer.status == HTTPStatus.OK]
        refused = len(light) - len(answered)
        p50_s = percentile(answered, 50) if answered else seconds
        light_s = len(answered) / seconds
        return CaseFigures(
            p50_s, refused, light_s, texts / elapsed_s, 1000 * cpu_s / max(1.0, texts)
        )

    async def _computed_texts(self, pool: Pool) -> float:
        """Return how many texts the server has computed."""
        answer = await pool.ask(self._served.target.get("/metrics"))
        return answer.total("kaiten_batch_items_sum")

    async def _light(
        self, pool: Pool, subject: str, seconds: float, every_s: float = 0
    ) -> list[Answer]:
        requests = [self.caller(subject).v1(text) for text in self._texts[:200]]
        return await _answers(pool, requests, time.monotonic() + seconds, every_s)

    async def _heavy(self, pool: Pool, subject: str, case: Case, ends: float) -> list[Answer]:
        texts = self._texts[: 4 * _TEXTS]
        if case.long:
            texts = [" ".join(self._texts[at : at + 20]) for at in range(4 * _TEXTS)]
        starts = range(0, len(texts), _TEXTS)
        requests = [self.caller(subject).v2(texts[at : at + _TEXTS]) for at in starts]
        return await _answers(pool, requests, ends)


async def _answers(
    pool: Pool, requests: Sequence[bytes], ends: float, every_s: float = 0
) -> list[Answer]:
    """Send requests in a cycle, one at a time, until ``ends``; pause after a refusal.

    ``every_s``: the least time from one request to the next.
    """
    answers: list[Answer] = []
    for request in cycle(requests):
        started = time.monotonic()
        if started >= ends:
            break
        answers.append(await pool.ask(request))
        if answers[-1].status != HTTPStatus.OK:
            await asyncio.sleep(_RETRY_S)
        await asyncio.sleep(max(0.0, started + every_s - time.monotonic()))
    return answers


async def run(report: Report, store: Path, folder: Path) -> None:
    """Run each case, alternating with the baseline commit if it is in the repository."""
    seconds = max(3.0, _SECONDS * report.scale)
    base = _base(folder / "base")
    with ExitStack() as stack:
        now = Callers(stack.enter_context(serve(store, folder / "now", _SETTINGS)))
        then = None
        if base is not None:
            then = Callers(stack.enter_context(serve(store, folder / "then", _SETTINGS, base)))
        await now.light_beside_light(_WARM_UP_S)
        light_s = await now.light_beside_light(seconds)
        report.tell("light beside light", p50_s=light_s)
        for case in CASES:
            figures = await now.light_beside_heavy(case, seconds)
            report.check(
                f"{case.name}: a light caller's p50 at most {_TIMES:g} times that beside a light "
                "one (s, times)",
                [figures.p50_s, figures.p50_s / light_s],
                passed=figures.p50_s <= _TIMES * light_s,
            )
            report.check(
                f"{case.name}: none of its requests is refused",
                figures.refused,
                passed=figures.refused == 0,
            )
            if then is not None:
                before = await then.light_beside_heavy(case, seconds)
                report.tell(
                    case.name,
                    p50_before_s=before.p50_s,
                    refused_before=before.refused,
                    light_requests_per_s_before_and_now=[before.light_s, figures.light_s],
                    texts_per_s_before_and_now=[before.texts_s, figures.texts_s],
                )
                await _compare_throughput(report, case, then, now, seconds)


async def _compare_throughput(
    report: Report, case: Case, then: Callers, now: Callers, seconds: float
) -> None:
    """Compare the texts per second beside a light caller that asks at the same rate of both."""
    rounds = [
        [
            await callers.light_beside_heavy(case, 0.6 * seconds, _LIGHT_EVERY_S)
            for callers in (then, now)
        ]
        for _ in range(_ROUNDS)
    ]
    before, after = (
        median(figure.texts_s for figure in figures) for figures in zip(*rounds, strict=True)
    )
    report.tell(
        case.name,
        paced_light_requests_per_s=[figure.light_s for figure in rounds[-1]],
        paced_texts_per_s_in_rounds=[[figure.texts_s for figure in pair] for pair in rounds],
        # On a shared machine, CPU time tells more of the capacity than throughput.
        paced_cpu_ms_a_text=[
            median(figure.cpu_ms for figure in figures) for figures in zip(*rounds, strict=True)
        ],
    )
    report.check(
        f"{case.name}: throughput at least {_SHARE:g} of before (texts/s, ratio)",
        [after, after / max(1.0, before)],
        passed=after >= _SHARE * before,
    )


def _base(folder: Path) -> Path | None:
    """Return a folder with the code of the baseline commit, None if the repository lacks it."""
    command = ["git", "archive", _BASE, *_BASE_PARTS, *_FOLDERS]
    archive = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:
        return None
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder
