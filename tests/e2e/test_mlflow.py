"""`kaiten register` of a version in a local MLflow registry, and its messages."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.servers import BIN, environment

LOG = """
import sys
import mlflow
from transformers import AutoModelForSequenceClassification, AutoTokenizer

parts = {
    "model": AutoModelForSequenceClassification.from_pretrained(sys.argv[1]),
    "tokenizer": AutoTokenizer.from_pretrained(sys.argv[1]),
}
with mlflow.start_run():
    mlflow.transformers.log_model(
        parts,
        name="model",
        task="text-classification",
        registered_model_name="intent",
        # It would look for torchvision to name its version.
        pip_requirements=["transformers"],
    )
"""
DETAILS = """
trained_at: 2026-11-20T10:00:00Z
metrics: {accuracy: 0.91}
git_commit: 3f786850e387550fdab836ed7e6dc881de23001b
licence: apache-2.0
limits: Not for anything but tests.
"""


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory, tiny_classifier: Path) -> Mapping[str, str]:
    """Return an environment whose registry has a model in version 1."""
    folder = tmp_path_factory.mktemp("mlflow")
    env = {
        **environment(folder / "bentoml", folder / "home"),
        "MLFLOW_TRACKING_URI": f"file:{folder}/registry",
        # The small MLflow has no database; the registry's client is the same.
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }
    command = [sys.executable, "-c", LOG, str(tiny_classifier)]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return env


def register(env: Mapping[str, str], source: str, *more: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "kaiten"), "register", source, "--name", "intent", "--bump", "auto"]
    return subprocess.run(
        [*command, "--task", "text-classification", "--json", *more],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def test_registry_version_is_registered_with_its_metadata(
    env: Mapping[str, str], tmp_path: Path
) -> None:
    files = {
        "details.yaml": DETAILS,
        "train.csv": "text,label\na,b\n",
        "reference.csv": "text\na\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    done = register(
        env,
        "models:/intent/1",
        *("--metadata", str(tmp_path / "details.yaml")),
        *("--training-data", str(tmp_path / "train.csv")),
        *("--reference-data", str(tmp_path / "reference.csv")),
    )
    assert done.returncode == 0, done.stderr
    card = json.loads(done.stdout)
    assert (card["name"], card["version"]) == ("intent", "1.0.0")
    assert card["labels"] == ["billing", "delivery", "other"]
    assert card["engine"]["opset"] == 17
    provenance = card["provenance"]
    assert provenance["metrics"] == {"accuracy": 0.91}
    assert provenance["licence"] == "apache-2.0"
    for field, name in (("training_data", "train.csv"), ("reference_data", "reference.csv")):
        assert provenance[field] == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    readme = Path(env["BENTOML_HOME"], "models/intent/1.0.0/README.md").read_text()
    assert "license: apache-2.0" in readme
    assert "Not for anything but tests." in readme


def test_version_that_the_registry_does_not_have_is_reported(env: Mapping[str, str]) -> None:
    done = register(env, "models:/intent/2")
    assert done.returncode == 1
    assert "folder: models:/intent/2 cannot be downloaded" in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_metadata_field_is_reported(env: Mapping[str, str], tmp_path: Path) -> None:
    (tmp_path / "details.yaml").write_text("accuracy: 0.9\n")
    done = register(env, "models:/intent/1", "--metadata", str(tmp_path / "details.yaml"))
    assert done.returncode == 1
    assert "metadata.accuracy" in done.stderr
