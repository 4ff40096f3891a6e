import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli import app
from gateway.auth.signing_secret import signing_secret
from kaiten.cpus import available_cores
from kaiten.settings.environment import ROOT
from kaiten.settings.loader import load_settings
from kaiten.settings.secrets import DEVELOPMENT_SECRET_FILE
from lifecycle.card import EngineCard, ModelCard, sha256
from lifecycle.store import ModelStore
from runners import engines
from runners.engines import cuda
from runners.engines.cuda import CudaDevice
from tests.issuer import issuing
from tests.postgres_server import postgres_server
from tests.redis_server import redis_server
from tests.unit.gateway.auth.mint import public_pem

SECRET = "8f14e45fceea167a5a36dedd4bea2543"
DEFAULT = "support-intent:1.0.0"


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch, model_store: Path) -> None:
    """Be a machine without CUDA, and with an empty model store, before a narrow terminal."""
    see_cuda(monkeypatch, [])
    monkeypatch.setenv("COLUMNS", "80")


def see_cuda(monkeypatch: pytest.MonkeyPatch, devices: list[CudaDevice]) -> None:
    monkeypatch.setattr(cuda, "count", lambda: len(devices))
    monkeypatch.setattr("server.diagnosis.details", lambda: devices)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def add(tag: str, folder: Path, *, engine: str = "onnx", task: str = "text-classification") -> None:
    """Put a version into the store, exported or not, whose files are of no matter."""
    source = folder / "file"
    source.write_text(tag)
    path = "onnx/model.onnx" if engine == "onnx" else "model.safetensors"
    name, _, version = tag.partition(":")
    card = ModelCard(
        name=name,
        version=version,
        task=task,
        labels=("yes", "no"),
        max_length=128,
        architecture="BertForSequenceClassification",
        framework_versions={},
        engine=EngineCard(name=engine, reason="a test says so"),
        files={path: sha256(source)},
    )
    ModelStore().add(card, {path: source})


def report(expected: int) -> dict[str, Any]:
    """Return what `kaiten doctor --json` says, once it ends by the expected code."""
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == expected, result.output
    diagnosis: dict[str, Any] = json.loads(result.stdout)
    assert diagnosis["ok"] == (expected == 0)
    return diagnosis


def fields(diagnosis: dict[str, Any]) -> list[str]:
    return [problem["field"] for problem in diagnosis["problems"]]


def doctor_output(expected: int) -> str:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == expected, result.output
    return result.stdout


def test_all_well(tmp_path: Path) -> None:
    add(DEFAULT, tmp_path)
    diagnosis = report(0)
    assert diagnosis["problems"] == []
    (model,) = diagnosis["models"]
    assert (model["tag"], model["lanes"]) == (DEFAULT, available_cores())
    assert (model["choice"]["engine"], model["choice"]["device"]) == ("onnx", "cpu")
    assert diagnosis["machine"]["cores"] == diagnosis["in_force"]["threads"] == available_cores()
    assert diagnosis["engines"].keys() == {"onnxruntime", "torch"}
    assert diagnosis["versions"].keys() >= {"python", "kaiten", "bentoml", "transformers", "numpy"}
    assert diagnosis["in_force"]["settings"].endswith("kaiten.yaml")


def test_it_reads_well_in_80_columns(tmp_path: Path) -> None:
    add(DEFAULT, tmp_path)
    output = doctor_output(0)
    assert max(map(len, output.splitlines())) <= 80
    assert f"{DEFAULT}  onnx on cpu, lanes: {available_cores()}" in output
    assert output.endswith("\nThe service would start.\n")


def test_cuda_devices_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    see_cuda(monkeypatch, [CudaDevice("NVIDIA L4", 24 << 30)])
    add(DEFAULT, tmp_path)
    assert "NVIDIA L4, 24.0 GiB" in doctor_output(0)
    (model,) = report(0)["models"]
    assert (model["choice"]["engine"], model["choice"]["device"]) == ("torch", "cuda")
    assert model["lanes"] == engines.CUDA_LANES


def test_devices_of_workers_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    see_cuda(monkeypatch, [CudaDevice("NVIDIA L4", 24 << 30)] * 2)
    add(DEFAULT, tmp_path)
    service = {"services": {"kaiten_service": {"workers": 3, "traffic": {"timeout": 60}}}}
    monkeypatch.setenv("BENTOML_CONFIG_OVERRIDES", json.dumps(service))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f14e45f,3")
    assert report(0)["in_force"]["placement"] == ["GPU-8f14e45f", "3", "GPU-8f14e45f"]
    assert "worker 1 on GPU-8f14e45f, worker 2 on 3, worker 3 on" in " ".join(
        doctor_output(0).split()
    )


def test_without_cuda_there_is_nothing_to_place(tmp_path: Path) -> None:
    add(DEFAULT, tmp_path)
    assert report(0)["in_force"]["placement"] == []
    assert "placement" not in doctor_output(0)


def test_missing_model_is_reported_with_its_remedy() -> None:
    diagnosis = report(1)
    assert fields(diagnosis) == ["serving.models"]
    assert diagnosis["models"][0]["choice"] is None
    # The last line of all, and one line however narrow the terminal.
    last = doctor_output(1).splitlines()[-1]
    assert last.startswith(f"  serving.models: Model {DEFAULT} is not in the model store")
    assert "make quickstart" in last


def test_changed_model_is_reported_with_its_remedy(tmp_path: Path) -> None:
    add(DEFAULT, tmp_path)
    (ModelStore().get(DEFAULT).folder / "onnx/model.onnx").write_text("changed")
    (problem,) = report(1)["problems"]
    assert problem["field"] == "serving.models"
    assert "register it again" in problem["reason"]


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("KAITEN_RUNNERS__ENGINE", "onnx", "runners.engine"),
        ("KAITEN_RUNNERS__DEVICE", "cuda", "runners.device"),
        ("KAITEN_SERVING__REQUEST_TIMEOUT_S", "60", "serving.request_timeout_s"),
        ("KAITEN_ENVIRONMENT", "production", "auth.secret"),
        ("KAITEN_AUTH__SECRET", "change-me-change-me-change-me-change-me", "auth.secret"),
        ("KAITEN_AUTH__SECRET_FILE", "/no/such/file", "auth.secret_file"),
        ("KAITEN_SERVNG__MODELS", "a:1.0.0", "KAITEN_SERVNG__MODELS"),
        ("KAITEN_CONFIG", "/no/such/file.yaml", "KAITEN_CONFIG"),
        ("BENTOML_CONFIG", "/no/such/file.yaml", "BENTOML_CONFIG"),
        ("KAITEN_LOGGING__FOLDER", "/dev/null/logs", "logging.folder"),
        ("KAITEN_PROFILES__TARGET", "/dev/null/profiles", "profiles.target"),
        ("KAITEN_TLS__CERTIFICATE", "/no/such/file", "tls"),
    ],
)
def test_error_that_would_prevent_a_start_is_reported_by_its_field(
    name: str, value: str, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(DEFAULT, tmp_path, engine="torch")
    monkeypatch.setenv(name, value)
    # In production, a model that was never promoted would prevent a start as well.
    promotion_fields = ["serving.models"] if value == "production" else []
    assert fields(report(1)) == [field, *promotion_fields]
    output = doctor_output(1)
    assert f"\n  {field}: " in output
    assert "change-me" not in output


def test_secrets_in_files_are_reported_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(DEFAULT, tmp_path)
    assert report(0)["in_force"]["secrets_folder"] is None
    folder = tmp_path / "secrets"
    monkeypatch.setenv("KAITEN_SECRETS", str(folder))
    assert "no secret in it" in doctor_output(0)
    folder.mkdir()
    (folder / "kaiten_auth__secret").write_text(SECRET)
    diagnosis = report(0)
    assert diagnosis["in_force"]["secret"] == "from auth.secret"
    assert diagnosis["in_force"]["secret_files"] == ["kaiten_auth__secret"]
    assert SECRET not in json.dumps(diagnosis) + doctor_output(0)
    (folder / "kaiten_auth__secrets").write_text(SECRET)
    assert fields(report(1)) == ["kaiten_auth__secrets"]
    assert SECRET not in doctor_output(1)


def test_tls_of_bentomls_own_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(DEFAULT, tmp_path)
    file = tmp_path / "bentoml.yaml"
    file.write_text("services:\n  kaiten_service:\n    ssl:\n      certfile: a.pem\n")
    monkeypatch.setenv("BENTOML_CONFIG", str(file))
    assert fields(report(1)) == ["services.kaiten_service.ssl"]


def test_key_that_bentoml_would_pass_over_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(DEFAULT, tmp_path)
    file = tmp_path / "bentoml.yaml"
    file.write_text("services:\n  kaiten_service:\n    trafic:\n      timeout: 90\n")
    monkeypatch.setenv("BENTOML_CONFIG", str(file))
    (problem,) = report(1)["problems"]
    assert problem["field"] == "services.kaiten_service.trafic"
    assert problem["reason"] == "is not a key of BentoML's; did you mean traffic?"


def test_every_problem_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tag in ("a:1.0.0", "b:1.0.0"):
        add(tag, tmp_path)
    monkeypatch.setenv("KAITEN_SERVING__MODELS", "a:1.0.0,b:1.0.0,c:1.0.0")
    monkeypatch.setenv("KAITEN_RUNNERS__DEVICE", "cuda")
    monkeypatch.setenv("KAITEN_AUTH__SECRET_FILE", "/no/such/file")
    assert fields(report(1)) == ["auth.secret_file", "runners.device", "serving.models"]


def test_missing_engine_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(DEFAULT, tmp_path)
    monkeypatch.setitem(engines.PACKAGES, "onnx", "no-such-package")
    diagnosis = report(1)
    assert diagnosis["engines"]["no-such-package"] is None
    assert fields(diagnosis) == ["runners.engine"]
    assert "not installed" in doctor_output(1)


@pytest.mark.parametrize(
    "text", ["services: [", "services: 1", "no mapping", "services: {kaiten_service: 1}"]
)
def test_broken_settings_of_bentoml_are_reported_in_a_line(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "bentoml.yaml"
    file.write_text(text)
    monkeypatch.setenv("BENTOML_CONFIG", str(file))
    assert fields(report(1)) == ["BENTOML_CONFIG"]
    assert doctor_output(1).splitlines()[-1].startswith("  BENTOML_CONFIG: ")


def test_bentoml_that_fails_to_import_is_reported_too(tmp_path: Path) -> None:
    file = tmp_path / "bentoml.yaml"
    file.write_text(f"api_server: {{sssl: {{keyfile_password: {SECRET}}}}}")
    # BentoML reads the file once, when it is imported.
    result = subprocess.run(
        [sys.executable, "-c", "from cli import main; main()", "doctor"],
        cwd=ROOT,
        env={**os.environ, "BENTOML_CONFIG": str(file)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (1, "")
    assert result.stdout.splitlines()[-1].startswith(f"  BENTOML_CONFIG: {file} cannot be used: ")
    assert SECRET not in result.stdout


def test_threads_are_each_workers_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(DEFAULT, tmp_path)
    file = tmp_path / "bentoml.yaml"
    file.write_text(f"services: {{kaiten_service: {{workers: {available_cores()}}}}}")
    monkeypatch.setenv("BENTOML_CONFIG", str(file))
    diagnosis = report(0)
    assert (diagnosis["in_force"]["workers"], diagnosis["in_force"]["threads"]) == (
        available_cores(),
        1,
    )
    assert diagnosis["models"][0]["lanes"] == 1


def test_options_from_the_environment_are_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(DEFAULT, tmp_path)
    service = {"workers": 3, "traffic": {"timeout": 20}}
    overrides = json.dumps({"services": {"kaiten_service": service}})
    monkeypatch.setenv("BENTOML_CONFIG_OVERRIDES", overrides)
    diagnosis = report(1)
    assert diagnosis["in_force"]["workers"] == 3
    assert fields(diagnosis) == ["serving.request_timeout_s"]


def test_unknown_task_is_rejected(tmp_path: Path) -> None:
    add(DEFAULT, tmp_path, task="mind-reading")
    (problem,) = report(1)["problems"]
    assert "'mind-reading' is not known" in problem["reason"]


def test_development_secret_is_not_made(tmp_path: Path) -> None:
    add(DEFAULT, tmp_path)
    assert report(0)["in_force"]["secret"].endswith("created on first use")
    assert not (tmp_path / DEVELOPMENT_SECRET_FILE).exists()


def test_secret_is_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(DEFAULT, tmp_path)
    secret = signing_secret(load_settings()).value
    assert secret not in doctor_output(0) + json.dumps(report(0))
    monkeypatch.setenv("KAITEN_AUTH__SECRET", SECRET)
    assert SECRET not in doctor_output(0) + json.dumps(report(0))
    assert report(0)["in_force"]["secret"] == "from auth.secret"


def test_ends_of_older_secrets_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(DEFAULT, tmp_path)
    ends = ["", " until 2000-01-01", " until 2999-12-31T12:00Z"]
    older = [f"{SECRET[::-1]}{number}{end}" for number, end in enumerate(ends)]
    (tmp_path / "secrets").write_text("\n".join([SECRET, *older]))
    monkeypatch.setenv("KAITEN_AUTH__SECRET_FILE", str(tmp_path / "secrets"))
    diagnosis = report(0)
    assert diagnosis["in_force"]["secret"] == (
        "from auth.secret_file, with 3 older: valid without an end, ended at 2000-01-01T00:00:00Z, "
        "valid until 2999-12-31T12:00:00Z"
    )
    assert SECRET[::-1] not in json.dumps(diagnosis)


def test_broken_development_secret_is_reported(tmp_path: Path) -> None:
    add(DEFAULT, tmp_path)
    (tmp_path / DEVELOPMENT_SECRET_FILE).write_text("short")
    assert fields(report(1)) == ["home"]


def test_whether_redis_answers_is_reported_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(DEFAULT, tmp_path)
    assert report(0)["in_force"]["redis"] is None
    with redis_server(password="canary") as server:
        monkeypatch.setenv("KAITEN_STATE__REDIS_URL", server.url)
        place = f"127.0.0.1:{server.port}"
        assert report(0)["in_force"]["redis"] == f"{place} answers"
        server.kill()
        redis = f"{place} does not answer (ConnectionError): each worker would count by itself"
        assert report(0)["in_force"]["redis"] == redis
        assert "canary" not in doctor_output(0)


def test_whether_the_database_can_be_used_is_reported_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(DEFAULT, tmp_path)

    def database() -> str | None:
        state: str | None = report(0)["in_force"]["database"]
        return state

    assert database() == f"{tmp_path / 'quality.sqlite'} can be used"
    assert not (tmp_path / "quality.sqlite").exists()
    with postgres_server() as server:
        monkeypatch.setenv("KAITEN_STATE__DATABASE_URL", server.url)
        place = f"127.0.0.1:{server.port}/postgres"
        assert database() == f"{place} can be used"
        server.stop()
        away = "cannot be used (OperationalError): feedback would be refused"
        assert database() == f"{place} {away}"
        assert "canary" not in doctor_output(0)
        server.start()
    monkeypatch.setenv("KAITEN_FEEDBACK__ENABLED", "false")
    assert database() is None


def test_where_keys_of_issuers_come_from_is_reported_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(DEFAULT, tmp_path)
    file = tmp_path / "partner.pem"
    file.write_bytes(public_pem("ES256"))
    with issuing() as issuer:
        partner = {"issuer": "partner", "audience": "kaiten", "public_key_file": str(file)}
        monkeypatch.setenv("KAITEN_AUTH__ISSUERS", json.dumps([issuer.settings(), partner]))

        def source() -> str:
            sources: dict[str, str] = report(0)["in_force"]["issuers"]
            assert sources["partner"] == f"public key in {file}"
            return sources[issuer.name].removeprefix(f"{issuer.url} ")

        assert source() == "answers with 1 usable key"
        assert "answers with 1 usable key" in " ".join(doctor_output(0).split())
        issuer.rotate()
        assert source() == "answers with 2 usable keys"
        issuer.answer = 200, b'{"keys": []}'
        assert source().startswith("gives no keys now (none of its")
        issuer.answer = 503, b""
        assert source().startswith("gives no keys now (status 503): ")
        issuer.down()
        assert source().startswith("gives no keys now (ConnectError: Connection refused): ")


def test_issuer_that_hangs_holds_the_doctor_up_no_longer_than_a_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(DEFAULT, tmp_path)
    monkeypatch.setattr("gateway.auth.factory._FETCH_TIMEOUT_S", 0.1)
    with issuing() as issuer:
        monkeypatch.setenv("KAITEN_AUTH__ISSUERS", json.dumps([issuer.settings()]))
        issuer.hang()
        assert "gives no keys now (" in report(0)["in_force"]["issuers"][issuer.name]
