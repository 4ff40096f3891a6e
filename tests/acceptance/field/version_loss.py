"""Loss of and damage to a served version, its store and the server's home."""

import asyncio
import os
import re
import shutil
import signal
from pathlib import Path

import httpx

from tests.acceptance.places import TWO_WORKERS, WatchedServer, serve
from tests.acceptance.report import Report
from tests.servers import copied_store

BEFORE = {
    "the version is gone: answers of 40": 40,
    "the version is gone: pages of 20 that answer 500": "/metrics 20, all others 0",
    "the version is gone: files damaged by the metric": "no such metric",
    "the version is gone: the log tells": 0,
    "the remedy makes nothing worse": "asked for `make quickstart` or `kaiten register`",
    "the home is gone: pages of 20 that answer 500": 0,
}
_TEXT = "My parcel has not arrived yet, where is it?"
_PAGES = ("/metrics", "/ops/stats", "/ops/drift", "/ops/quality", "/readyz")
_PATIENCE_S, _RESTART_S = 60, 100


async def run(report: Report, store: Path, folder: Path) -> None:
    """Remove the version, kill a worker, restore the version, then remove home and store."""
    copy = copied_store(store, folder / "bentoml")
    version = copy / "models" / "support-intent" / "1.0.0"
    home = folder / "home"
    with serve(copy, home, TWO_WORKERS) as place:
        shutil.move(version, folder / "aside")
        await _check_serving(report, place, "the version is gone")
        await _check_damage_is_reported(report, place)
        await _check_worker_replacement(report, place, folder / "aside", version)
        _change(version / "model_card.json")
        await _check_serving(report, place, "the card is changed")
        shutil.rmtree(home)
        await _check_serving(report, place, "the home is gone")
        shutil.rmtree(copy / "kaiten")
        shutil.rmtree(copy / "models")
        await _check_serving(report, place, "the store is gone")


async def _check_serving(report: Report, place: WatchedServer, when: str) -> None:
    ops = place.server.token("ops", "ops")
    token = place.target.token
    async with httpx.AsyncClient(base_url=place.server.url, timeout=60) as client:
        statuses = [
            (await client.post(
                "/api/v1/predict", json={"text": f"{_TEXT} {number}"},
                headers={"Authorization": f"Bearer {token}"},
            )).status_code
            for number in range(40)
        ]  # fmt: skip
        pages = dict.fromkeys(_PAGES, 0)
        digests = set()
        for page in _PAGES:
            for _ in range(20):
                answer = await client.get(
                    page, headers={"Authorization": f"Bearer {ops}", "Connection": "close"}
                )
                pages[page] += answer.status_code == 500
                digests.update(re.findall(r'kaiten_model_info\{.*digest="(\w{8})', answer.text))
    answered = statuses.count(200)
    report.check(f"{when}: answers of 40", answered, passed=answered == 40)
    report.check(f"{when}: pages of 20 that answer 500", pages, passed=not any(pages.values()))
    report.check(f"{when}: digests that metrics tell", [*digests], passed=len(digests) == 1)


async def _check_damage_is_reported(report: Report, place: WatchedServer) -> None:
    """Wait for the gauge, and check the log."""
    damaged = ""
    async with httpx.AsyncClient(base_url=place.server.url, timeout=60) as client:
        for _ in range(_PATIENCE_S):
            page = (await client.get("/metrics")).text
            values = re.findall(r"^kaiten_model_files_damaged\{.*\} (\S+)$", page, re.MULTILINE)
            damaged = values[0] if values else "no such metric"
            if damaged not in {"no such metric", "0.0"}:
                break
            await asyncio.sleep(1)
    report.check(
        "the version is gone: files damaged by the metric",
        damaged,
        passed=damaged[0] in "123456789",
    )
    lines = [line for line in place.server.process.lines if "model_files_damaged" in line]
    report.check("the version is gone: the log tells", len(lines), passed=bool(lines))


async def _check_worker_replacement(
    report: Report, place: WatchedServer, aside: Path, version: Path
) -> None:
    """Kill a worker: its replacement fails with a helpful message until the files are back."""
    workers = place.watch.workers()
    line_count = len(place.server.process.lines)
    os.kill(workers[0].pid, signal.SIGKILL)
    message: list[str] = []
    for _ in range(_RESTART_S):
        await asyncio.sleep(1)
        lines = place.server.process.lines[line_count:]
        message = [line for line in lines if "worker_not_started" in line]
        if message:
            break
    report.tell("a worker is replaced", message=message[-1][-400:] if message else "none")
    harmful = [
        line for line in message if "bentoml models delete" in line or "make quickstart" in line
    ]
    report.check(
        "the remedy makes nothing worse", len(harmful), passed=bool(message) and not harmful
    )
    starts = len([line for line in place.server.process.lines if "Completed async startup" in line])
    shutil.move(aside, version)
    place.wait_for_starts(starts + 1)
    report.tell("a worker is replaced", starts=starts + 1)


def _change(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content.replace(b"support", b"suppork", 1))
