"""Feedback while another program locks the database, and floods of labels for made-up ids."""

import asyncio
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import httpx

from tests.acceptance.report import Report
from tests.servers import Server, environment, serving, until_ready

BEFORE = {
    "SQLite locked for 20 s: seconds until a label is refused": "5.0, each of 16",
    "SQLite locked for 20 s: events in the log": "none",
    "labels of 1,000 characters for unknown ids: MB in 10 s, in one process": 36.3,
}
_LOCK_S = 15
_FLOOD_S = 30
_LANES = 4
_BATCH = 256
# Room for 4,000 waiting labels of one subject, of up to 1,000 characters each, and the WAL.
_MOST_BYTES = 24_000_000


async def run(report: Report, store: Path, folder: Path) -> None:
    """Lock the database during requests, then flood it with labels for made-up ids."""
    home = folder / "home"
    env = environment(
        store,
        home,
        KAITEN_AUTH__SECRET="0123456789abcdef" * 4,
        OMP_NUM_THREADS="1",
        OMP_WAIT_POLICY="PASSIVE",
    )
    with serving(env) as server:
        await asyncio.to_thread(until_ready, server.url)
        token = server.token("review", "feedback", "predict")
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60) as client:
            await _check_locked_database(report, server, client, home / "quality.sqlite")
            await _check_flood(report, client, home, max(0.2, report.scale) * _FLOOD_S)


async def _labels(client: httpx.AsyncClient, name: str, label: str, count: int = 1) -> int:
    items = [{"request_id": name, "item": item, "label": label} for item in range(count)]
    return (await client.post("/api/v2/feedback", json={"feedback": items})).status_code


async def _check_locked_database(
    report: Report, server: Server, client: httpx.AsyncClient, file: Path
) -> None:
    before = await _labels(client, "before", "x")
    statuses: Counter[int] = Counter()
    seconds: list[float] = []
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        begun, number = time.monotonic(), 0
        while time.monotonic() - begun < _LOCK_S:
            number += 1
            started = time.monotonic()
            statuses[await _labels(client, f"locked-{number}", "x")] += 1
            seconds.append(time.monotonic() - started)
            await asyncio.sleep(0.1)
        body = {"text": "Where is my parcel?"}
        predicted = (await client.post("/api/v1/predict", json=body)).status_code
        metrics = (await client.get("/metrics")).text
        shell.rollback()
    report.tell("locked", requests=number, slowest_s=max(seconds), statuses=str(dict(statuses)))
    report.check("locked: every label is a 503", dict(statuses), passed=set(statuses) == {503})
    median = sorted(seconds)[len(seconds) // 2]
    report.check("locked: refused at once (median, s)", median, passed=median < 0.5)
    report.check(
        "locked: log says so", "database_locked", passed="database_locked" in server.process.log
    )
    away = "kaiten_database_unavailable 1.0" in metrics
    report.check("locked: metric says so", away, passed=away and 'outcome="unavailable"' in metrics)
    report.check("locked: predictions go on", predicted, passed=predicted == 200)
    # Longer than the pause before the server tries the database again.
    await asyncio.sleep(5)
    after = await _labels(client, "after", "x")
    report.check("locked: labels are taken again", [before, after], passed=before == after == 200)


def _size_of(home: Path) -> int:
    return sum(file.stat().st_size for file in home.glob("quality.sqlite*"))


async def _check_flood(
    report: Report, client: httpx.AsyncClient, home: Path, seconds: float
) -> None:
    begun = time.monotonic()
    statuses: Counter[int] = Counter()

    async def flood(lane: int, label: str) -> None:
        number = 0
        while time.monotonic() - begun < seconds:
            number += 1
            statuses[await _labels(client, f"no-{lane}-{number}", label, _BATCH)] += 1

    await asyncio.gather(
        *(flood(lane, "x" * (1000 if lane % 2 else 256)) for lane in range(_LANES))
    )
    size = await asyncio.to_thread(_size_of, home)
    report.tell("labels for nothing", seconds=seconds, statuses=str(dict(statuses)), mb=size / 1e6)
    report.check(
        "labels for nothing: MB of the database and its log", size / 1e6, passed=size < _MOST_BYTES
    )
    # Labels for real predictions are still accepted.
    answer = await client.post("/api/v1/predict", json={"text": "Where is my parcel?"})
    predicted = answer.json()
    await asyncio.sleep(2)
    status = await _labels(client, predicted["request_id"], predicted["label"])
    report.check("labels for nothing: one for an answer is taken", status, passed=status == 200)
