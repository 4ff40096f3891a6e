"""From a registered version to production, by the commands, on the real quickstart model."""

import json
import re
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.servers import BIN, QUICKSTART, copied_store, environment, serving

TAG = "support-intent:1.0.0"
ROWS = QUICKSTART / "data" / "test.jsonl"


@pytest.fixture
def env(bentoml_home: Path, tmp_path: Path) -> Mapping[str, str]:
    """Return an environment with a copy of the store, as `make quickstart` leaves it."""
    store = copied_store(bentoml_home, tmp_path / "bentoml")
    return environment(store, tmp_path / "home")


@pytest.fixture(scope="module")
def validated_store(bentoml_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose version has a report, which takes as long to make as a server to start."""
    folder = tmp_path_factory.mktemp("validated")
    store = copied_store(bentoml_home, folder / "bentoml")
    done = kaiten(environment(store, folder / "home"), "validate", TAG, "--data", str(ROWS))
    assert done.returncode == 0, done.stderr
    return store


@pytest.fixture
def validated(validated_store: Path, tmp_path: Path) -> Mapping[str, str]:
    """Return an environment with a copy of that store."""
    return environment(copied_store(validated_store, tmp_path / "bentoml"), tmp_path / "home")


def kaiten(env: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "kaiten"), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def bentoml(env: Mapping[str, str], *arguments: str) -> None:
    subprocess.run([str(BIN / "bentoml"), *arguments], env=env, check=True, capture_output=True)


def promote(env: Mapping[str, str], stage: str) -> subprocess.CompletedProcess[str]:
    return kaiten(env, "promote", TAG, "--to", stage, "--reason", "a first release")


def test_from_quickstart_to_production(env: Mapping[str, str], tmp_path: Path) -> None:
    reports = tmp_path / "bentoml/models/support-intent/1.0.0/reports"
    # By the script that has made the model.
    (first,) = reports.iterdir()
    validated = kaiten(env, "validate", TAG, "--data", str(ROWS), "--json")
    assert validated.returncode == 0, validated.stderr
    report = json.loads(validated.stdout)
    assert report["measures"]["accuracy"] > 0.9
    assert report["measures"]["rows"] == len(ROWS.read_text().splitlines())
    (folder,) = {*reports.iterdir()} - {first}
    page = (folder / "report.html").read_text()
    assert "<svg" in page
    # The page loads nothing.
    assert not re.search(r'(src|href)="(?!#|data:)|url\((?!#)|@import|<script', page)
    assert (folder / "reference.bin").stat().st_size > 1000
    # Fourteen labels by 384.
    assert (folder / "centroids.npz").stat().st_size > 14 * 384 * 4
    calibration = json.loads((folder / "calibration.json").read_text())
    assert calibration["rows"] == report["measures"]["rows"]
    assert 0 < calibration["error"] == report["estimate_error"] < 0.1
    assert f"{calibration['error']:.3f} on average" in page
    # Reports go where their readers are, and hold no text.
    texts = [json.loads(line)["text"] for line in ROWS.read_text().splitlines()]
    assert not [text for text in texts if text in page or text in validated.stdout]

    refusal = promote(env, "production")
    assert refusal.returncode == 1
    assert "it does not serve in staging" in refusal.stderr
    for stage in ("staging", "production"):
        assert promote(env, stage).returncode == 0
    entries = json.loads(kaiten(env, "model", "audit-log", "support-intent", "--json").stdout)
    assert [entry["action"] for entry in entries] == [
        "registered",
        "validated",
        "validated",
        "promoted",
        "promoted",
    ]

    serving_env = {**env, "KAITEN_SERVING__MODELS": "support-intent"}
    with serving(serving_env) as server, server.client(server.token()) as client:
        answer = client.post("/api/v1/predict", json={"text": "Where is my parcel?"})
        assert answer.raise_for_status().json()["model"] == TAG


def test_one_changed_byte_is_refused_by_name(validated: Mapping[str, str], tmp_path: Path) -> None:
    weights = tmp_path / "bentoml/models/support-intent/1.0.0/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    refused = promote(validated, "staging")
    assert refused.returncode == 1
    assert "model.safetensors: is missing, or was changed" in refused.stderr


def test_remedy_for_a_changed_byte_restores_production(
    validated: Mapping[str, str], tmp_path: Path
) -> None:
    for stage in ("staging", "production"):
        assert promote(validated, stage).returncode == 0
    copy = str(tmp_path / "exported.tar")
    bentoml(validated, "models", "export", TAG, copy)
    version = tmp_path / "bentoml/models/support-intent/1.0.0"
    weights = version / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    in_production = {
        **validated,
        "KAITEN_ENVIRONMENT": "production",
        "KAITEN_AUTH__SECRET": secrets.token_hex(32),
    }
    (problem,) = json.loads(kaiten(in_production, "doctor", "--json").stdout)["problems"]
    assert f"First move {version}, if it exists, out of the store." in problem["reason"]
    assert "`bentoml models import FILE`" in problem["reason"]

    shutil.move(version, tmp_path / "aside")
    # Another model under the number would not be served in production.
    network = str(tmp_path / "aside")
    named = ("--name", "support-intent", "--version", "1.0.0", "--task", "text-classification")
    refusal = kaiten(validated, "register", network, *named)
    assert refusal.returncode == 1
    assert "restore support-intent:1.0.0 from a copy" in refusal.stderr
    bentoml(validated, "models", "import", copy)
    doctor = kaiten(in_production, "doctor")
    assert doctor.returncode == 0, doctor.stdout


def test_report_that_does_not_pass_exits_1_and_says_why(env: Mapping[str, str]) -> None:
    strict = {**env, "KAITEN_VALIDATION__MIN_ACCURACY": "0.999"}
    refused = kaiten(strict, "validate", TAG, "--data", str(ROWS))
    assert refused.returncode == 1
    assert "and must be at least 0.999" in refused.stderr
    assert "did not pass: accuracy is" in promote(env, "staging").stderr


def test_exported_version_is_whole_where_it_is_imported(
    validated: Mapping[str, str], tmp_path: Path
) -> None:
    assert promote(validated, "staging").returncode == 0
    # Uncompressed: xz takes two minutes for these weights.
    archive = tmp_path / "exported.tar"
    elsewhere = {**validated, "BENTOML_HOME": str(tmp_path / "elsewhere")}
    for store_env, arguments in (
        (validated, ("export", TAG, str(archive))),
        (elsewhere, ("import", str(archive))),
    ):
        bentoml(store_env, "models", *arguments)
    result = kaiten(elsewhere, "model", "show", TAG, "--json")
    assert json.loads(result.stdout) == json.loads(
        kaiten(validated, "model", "show", TAG, "--json").stdout
    )
    # It has brought its promotion, without the trail.
    assert kaiten(elsewhere, "model", "audit-log", "support-intent").returncode == 1
    doctor = kaiten({**elsewhere, "KAITEN_ENVIRONMENT": "production"}, "doctor", "--json")
    fields = [problem["field"] for problem in json.loads(doctor.stdout)["problems"]]
    assert fields == ["auth.secret"]
