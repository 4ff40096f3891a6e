"""A hung device: the time until readiness fails, and the answers of waiting callers."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.acceptance.fragile_classification.serving import HANG
from tests.acceptance.places import WatchedServer, serve_fragile
from tests.acceptance.report import Report

BEFORE: Mapping[str, object] = {
    "readyz": 200,
    "answers": "211 times 504, then 429 only, without end",
}
_TIMEOUT_S, _RED_S, _LIMIT_S, _PROBE_S = 3.0, 8.0, 90.0, 2.0
_OK, _UNREADY = 200, 503


async def run(report: Report, store: Path, folder: Path) -> None:
    """Hang the device with the model in the worker, and in a device process."""
    for process in ("worker", "device"):
        settings = {
            "KAITEN_BATCHING__HANG_TIMEOUT_S": f"{_TIMEOUT_S:g}",
            "KAITEN_RUNNERS__PROCESS": process,
        }
        (place := folder / process).mkdir()
        with serve_fragile(store, place, settings) as server:
            await _hang(report, process, server)


async def _hang(report: Report, process: str, server: WatchedServer) -> None:
    async with server.pool() as pool:
        await _until(server, _OK)
        began = time.monotonic()
        coroutines = [pool.ask(server.target.v1(f"{HANG} {number}")) for number in range(8)]
        calls = [asyncio.create_task(coroutine) for coroutine in coroutines]
        red_s = await _until(server, _UNREADY) - began
        answers = await asyncio.gather(*calls)
        statuses = Counter(answer.status for answer in answers)
        report.check(
            f"{process}: red within {_RED_S:g} s, with a timeout of {_TIMEOUT_S:g} s",
            red_s,
            passed=red_s <= _RED_S,
        )
        report.check(
            f"{process}: callers get 503", dict(statuses), passed=set(statuses) == {_UNREADY}
        )
        back_s = await _until(server, _OK) - began
        report.check(f"{process}: serves again", back_s, passed=back_s <= _LIMIT_S)
    async with server.pool() as pool:
        answer = await pool.ask(server.target.v1("Where is my parcel?"))
        report.check(f"{process}: answers again", answer.status, passed=answer.status == _OK)
        page = await pool.ask(server.target.get("/metrics"))
        hangs = page.total("kaiten_device_hangs_total")
        report.check(f"{process}: counted once", hangs, passed=hangs == 1)


async def _until(server: WatchedServer, status: int) -> float:
    """Return when /readyz is 200, or is not; as for a probe, a late answer counts as not."""
    ends = time.monotonic() + _LIMIT_S
    while time.monotonic() < ends:
        async with server.pool() as pool:
            try:
                async with asyncio.timeout(_PROBE_S):
                    code = (await pool.ask(server.target.get("/readyz"))).status
            except (OSError, TimeoutError):
                code = 0
        if (code == _OK) == (status == _OK):
            break
        await asyncio.sleep(0.1)
    return time.monotonic()
