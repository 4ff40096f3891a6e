"""One real server, as `make serve` starts it: its printed example, `kaiten smoke`, its end.

It serves a model of chance weights, registered here in seconds; tests/e2e serves the quickstart's.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import BIN, Server, environment, serving

MODEL = "tiny:1.0.0"
TEXTS = [f"w{number} w{number + 1} w{number * 2}" for number in range(24)]


@pytest.fixture(scope="module")
def server(tiny_classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    env = environment(tmp_path_factory.mktemp("bentoml"), tmp_path_factory.mktemp("home"))
    command = [str(BIN / "kaiten"), "register", str(tiny_classifier), "--name", "tiny"]
    command += ["--version", "1.0.0", "--task", "text-classification"]
    subprocess.run(command, env=env, check=True)
    with serving(env, "--model", MODEL) as server:
        yield server


def expected_labels(folder: Path, texts: list[str]) -> list[str]:
    """Return the label that transformers itself gives each text."""
    import torch  # noqa: PLC0415  takes seconds
    from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: PLC0415

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        logits = [model(**tokenizer(text, return_tensors="pt")).logits for text in texts]
    return [model.config.id2label[int(row.argmax())] for row in logits]


def write_golden(file: Path, labels: list[str]) -> Path:
    """Write a row for each text, with its label."""
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=True)]
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


def test_printed_curl_line_returns_the_label_of_transformers(
    server: Server, tiny_classifier: Path
) -> None:
    line = next(line for line in server.process.lines if line.startswith("curl "))
    done = subprocess.run(["bash", "-c", line], check=True, capture_output=True, text=True)
    response = json.loads(done.stdout)
    assert set(response) == {
        *("result", "label", "confidence", "truncated", "model", "request_id", "timestamp")
    }
    (text,) = re.findall(r'"text": ?"([^"]+)"', line)
    assert [response["label"]] == expected_labels(tiny_classifier, [text])
    assert response["model"] == MODEL


def test_smoke_passes_on_a_good_server(
    server: Server, tiny_classifier: Path, tmp_path: Path
) -> None:
    labels = expected_labels(tiny_classifier, TEXTS)
    assert len(set(labels)) > 1
    golden = write_golden(tmp_path / "golden.jsonl", labels)
    code, checks, _ = run_smoke(server, "--model", MODEL, "--golden", str(golden))
    assert (code, failed(checks)) == (0, set())
    assert checks["predictions"]["seen"] == f"{len(TEXTS)} golden rows as labelled"
    assert checks["version"]["seen"] == MODEL
    assert f"{MODEL} is " in checks["build"]["seen"]


def test_smoke_reports_another_version_and_another_label(
    server: Server, tiny_classifier: Path, tmp_path: Path
) -> None:
    first, *other_labels = expected_labels(tiny_classifier, TEXTS)
    wrong = next(label for label in other_labels if label != first)
    golden = str(write_golden(tmp_path / "golden.jsonl", [wrong, *other_labels]))
    code, checks, stderr = run_smoke(server, "--model", "tiny:9.0.0", "--golden", golden)
    assert code == 1
    assert {"version", "predictions"} <= failed(checks)
    assert f"version: {MODEL} answers, not tiny:9.0.0" in stderr


def test_smoke_reports_a_missing_scope_and_its_remedy(server: Server, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(server.token("x", "ops"))
    options = ("--token-file", str(tmp_path / "token"))
    command = [str(BIN / "kaiten"), "smoke", server.url, *options]
    done = subprocess.run(command, env=server.env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "predictions: 403 forbidden. The token lacks a scope" in done.stderr


def test_log_in_a_pipe_is_json_that_names_the_address_and_no_poll(server: Server) -> None:
    (line,) = server.process.wait_for('"event": "listening"')
    assert json.loads(line)["address"] == server.url
    start = server.process.lines[: server.process.lines.index("Stop with Ctrl-C.")]
    assert not [line for line in start if "readyz" in line or "Starting ..." in line]


def test_registration_is_in_the_log_of_operators_actions(server: Server) -> None:
    file = Path(server.env["KAITEN_HOME"]) / "audit.log"
    (entry,) = map(json.loads, file.read_text("utf-8").splitlines())
    assert (entry["event"], entry["action"]) == ("audit_log_appended", "registered")


def test_server_stops_cleanly(server: Server) -> None:
    """The last test of this file, because it stops the server."""
    assert server.process.stop() == 0
    assert "Traceback" not in server.process.log
