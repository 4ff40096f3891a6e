"""The GPU benchmark in one call, with a tiny network on whatever device there is."""

import asyncio
import json
import sys
from pathlib import Path

from kaiten.settings.environment import environment_for
from tests.acceptance.report import Report
from tests.servers import ROOT

LAYOUTS = {"1 worker, a model in each", "2 workers, one device process"}


async def run(report: Report, _: Path, folder: Path) -> None:
    """Run it as its users do; it takes a minute whatever the scale."""
    out = folder / "gpu.json"
    variables = {"BANKING77_DIR": str(folder / "absent"), "BENCHMARKS_HOME": str(folder / "home")}
    command = ["-m", "benchmarks.gpu", "--smoke", "--out", str(out)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=ROOT, env=environment_for(variables)
    )
    report.check("it ends well", await process.wait(), passed=process.returncode == 0)
    records = json.loads(out.read_text(encoding="utf-8"))["records"]
    omitted_kinds = [row["kind"] for row in records if row["kind"] in {"skipped", "failed"}]
    report.check("nothing is left out", omitted_kinds, passed=not omitted_kinds)
    rates = {row["layout"]: row["requests_s"] for row in records if row["kind"] == "served"}
    errors = sum(row["errors"] for row in records if row["kind"] == "served")
    report.check("both layouts are served", rates, passed=set(rates) == LAYOUTS and not errors)
    equal = [row["equal_labels"] for row in records if row["kind"] == "layout"]
    # The batches differ, and with them the last bits of a tie.
    report.check(
        "labels are as one at a time",
        equal,
        passed=len(equal) == len(LAYOUTS) and min(equal) > 0.99,
    )
    written = "## Served" in out.with_suffix(".md").read_text(encoding="utf-8")
    report.check("the report is written", written, passed=written)
