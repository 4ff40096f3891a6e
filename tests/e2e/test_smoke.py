"""`kaiten smoke` against the real server, with the real model."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.house import BIN, QUICKSTART, Server

pytestmark = pytest.mark.e2e
MODEL = "support-intent:1.0.0"


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that the quickstart model answers as they are labelled."""
    rows = [
        {"text": "My parcel has not arrived yet, where is it?", "label": "order_status"},
        {"text": "I forgot my password", "label": "login_problem"},
    ]
    file = tmp_path_factory.mktemp("golden") / "golden.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def smoke(server: Server, *options: str) -> tuple[int, dict[str, dict[str, str]], str]:
    """Return the exit code, the checks by name, and what standard error says."""
    command = [str(BIN / "kaiten"), "smoke", server.url, "--json", *options]
    done = subprocess.run(command, env=server.env, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, {each["name"]: each for each in found["checks"]}, done.stderr


def failed(checks: dict[str, dict[str, str]]) -> set[str]:
    assert not [each for each in checks.values() if each["outcome"] == "skipped"]
    return {name for name, each in checks.items() if each["outcome"] == "failed"}


def test_real_server_keeps_what_callers_rely_on(server: Server, golden: Path) -> None:
    code, checks, _ = smoke(server, "--model", MODEL, "--golden", str(golden))
    assert (code, failed(checks)) == (0, set())
    assert checks["predictions"]["seen"] == "2 golden rows as labelled"
    assert checks["version"]["seen"] == MODEL
    assert f"{MODEL} is " in checks["build"]["seen"]


def test_another_version_and_another_label_are_found(server: Server) -> None:
    rows = str(QUICKSTART / "data" / "test.jsonl")
    code, checks, said = smoke(server, "--model", "support-intent:9.0.0", "--golden", rows)
    assert code == 1
    # The model is right on most of these rows, and on not all.
    assert {"version", "predictions"} <= failed(checks)
    assert f"version: {MODEL} answers, not support-intent:9.0.0" in said


def test_token_for_less_is_told_with_its_remedy(server: Server, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(server.token("--subject", "x", "--scope", "ops"))
    options = ("--token-file", str(tmp_path / "token"))
    command = [str(BIN / "kaiten"), "smoke", server.url, *options]
    done = subprocess.run(command, env=server.env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "predictions: 403 forbidden. The token is for less" in done.stderr
