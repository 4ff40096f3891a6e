"""One real server, as `make serve` starts it: its printed example, `kaiten smoke`, its end."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import BIN, QUICKSTART, Server, environment, quickstart_store, serving

MODEL = "support-intent:1.0.0"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(environment(quickstart_store(), tmp_path_factory.mktemp("home"))) as server:
        yield server


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two rows that the quickstart model labels correctly."""
    rows = [
        {"text": "My parcel has not arrived yet, where is it?", "label": "order_status"},
        {"text": "I forgot my password", "label": "login_problem"},
    ]
    file = tmp_path_factory.mktemp("golden") / "golden.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def run_smoke(server: Server, *options: str) -> tuple[int, dict[str, dict[str, str]], str]:
    """Return the exit code of `kaiten smoke`, its checks by name, and standard error."""
    command = [str(BIN / "kaiten"), "smoke", server.url, "--json", *options]
    done = subprocess.run(command, env=server.env, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, {check["name"]: check for check in report["checks"]}, done.stderr


def failed(checks: dict[str, dict[str, str]]) -> set[str]:
    assert not [check for check in checks.values() if check["outcome"] == "skipped"]
    return {name for name, check in checks.items() if check["outcome"] == "failed"}


def test_printed_curl_line_returns_the_correct_intent(server: Server) -> None:
    line = next(line for line in server.process.lines if line.startswith("curl "))
    done = subprocess.run(["bash", "-c", line], check=True, capture_output=True, text=True)
    response = json.loads(done.stdout)
    assert set(response) == {
        *("result", "label", "confidence", "truncated", "model", "request_id", "timestamp")
    }
    assert response["label"] == "order_status"
    assert response["model"] == MODEL


def test_smoke_passes_on_a_good_server(server: Server, golden: Path) -> None:
    code, checks, _ = run_smoke(server, "--model", MODEL, "--golden", str(golden))
    assert (code, failed(checks)) == (0, set())
    assert checks["predictions"]["seen"] == "2 golden rows as labelled"
    assert checks["version"]["seen"] == MODEL
    assert f"{MODEL} is " in checks["build"]["seen"]


def test_smoke_reports_another_version_and_another_label(server: Server) -> None:
    rows = str(QUICKSTART / "data" / "test.jsonl")
    code, checks, stderr = run_smoke(server, "--model", "support-intent:9.0.0", "--golden", rows)
    assert code == 1
    # The model is right on most of these rows, but not on all.
    assert {"version", "predictions"} <= failed(checks)
    assert f"version: {MODEL} answers, not support-intent:9.0.0" in stderr


def test_smoke_reports_a_missing_scope_and_its_remedy(server: Server, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(server.token("x", "ops"))
    options = ("--token-file", str(tmp_path / "token"))
    command = [str(BIN / "kaiten"), "smoke", server.url, *options]
    done = subprocess.run(command, env=server.env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "predictions: 403 forbidden. The token lacks a scope" in done.stderr


def test_server_stops_cleanly(server: Server) -> None:
    """The last test of this file, because it stops the server."""
    assert server.process.stop() == 0
    assert "Traceback" not in server.process.log
