"""The GPU benchmark in one call, with a tiny network on whatever device there is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.house import ROOT

pytestmark = pytest.mark.e2e


def test_one_call_measures_and_reports(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--smoke", "--out", str(out)]
    own = {"BANKING77_DIR": str(tmp_path / "absent"), "BENCHMARKS_HOME": str(tmp_path / "home")}
    env = {**os.environ, **own}
    done = subprocess.run(command, cwd=ROOT, env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    records = json.loads(out.read_text())["records"]
    assert not [row for row in records if row["kind"] in {"skipped", "failed"}]
    served = [row for row in records if row["kind"] == "served"]
    assert {row["layout"] for row in served} == {
        "1 worker, a model in each",
        "2 workers, one device process",
    }
    assert all(row["requests_s"] > 0 and row["errors"] == 0 for row in served)
    layouts = [row for row in records if row["kind"] == "layout"]
    assert len(layouts) == 2
    # The batches differ, and with them the last bits of a tie.
    assert all(row["equal_labels"] > 0.99 for row in layouts)
    assert "## Served" in out.with_suffix(".md").read_text()
