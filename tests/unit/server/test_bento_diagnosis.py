"""`kaiten doctor BENTO`: examine the code, the settings, the models and the packages of a bento."""

import json
import secrets
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cli import app
from kaiten.errors import InvalidSettings, SetupError
from kaiten.installation import install_command
from kaiten.settings.environment import ROOT
from kaiten.settings.models import VersioningSettings
from lifecycle.audit_log import Stage
from lifecycle.packaging.bento import PROVENANCE, REQUIREMENTS, bento_files
from lifecycle.packaging.context import combine_digests, pin_models
from lifecycle.promotion import PromotionGate, PromotionRequest
from lifecycle.store import ModelStore
from server.bento_diagnosis import diagnose_bento
from tests.unit.lifecycle.cards import save_report, store_model

SECRET = secrets.token_hex(32)
PACKAGES = ("cli", "server", "gateway", "runners", "monitors", "lifecycle", "kaiten")


@pytest.fixture
def bento(model_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a bento of this code with a model in staging, as kaiten build makes it."""
    monkeypatch.setenv("KAITEN_AUTH__SECRET", SECRET)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    store = ModelStore()
    model = store_model(store, "ours:1.0.0", tmp_path)
    save_report(store, model)
    request = PromotionRequest(Stage.STAGING, "tester", "a test", {})
    PromotionGate(store, VersioningSettings()).promote("ours:1.0.0", request)

    folder = model_store / "bentos" / "kaiten_service" / "1.0.0-cpu-0f2a9c81d0be"
    source = folder / "src"
    source.mkdir(parents=True)
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, source / package, ignore=ignored)
    settings = pin_models((ROOT / "kaiten.yaml").read_text("utf-8"), ["ours:1.0.0"])
    (source / "kaiten.yaml").write_text(settings, "utf-8")
    shutil.copy(ROOT / "configuration.yaml", source)
    (folder / REQUIREMENTS).parent.mkdir(parents=True)
    (folder / REQUIREMENTS).write_text("numpy==0.1 \\\n    --hash=sha256:aa\n", "utf-8")
    labels = {
        "revision": "c0ffee",
        "models": "ours:1.0.0",
        "model_digests": f"sha256:{model.digest}",
        "report_digests": "sha256:aa",
    }
    content = {"name": "kaiten_service", "version": folder.name, "labels": labels}
    (folder / "bento.yaml").write_text(yaml.safe_dump(content | {"creation_time": "now"}))
    lock(folder)
    return folder


def lock(folder: Path) -> None:
    """Write the digest of the bento's files."""
    tag = f"kaiten_service:{folder.name}"
    digest = {"sha256": combine_digests(bento_files(folder))}
    (folder / PROVENANCE).write_text(json.dumps({"subject": [{"name": tag, "digest": digest}]}))


def test_start_from_a_bento_is_examined_by_the_bentos_own_code(
    bento: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The checkout, in which the command may be run, takes no precedence.
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(app, ["doctor", str(bento), "--json"])
    diagnosis: dict[str, Any] = json.loads(result.stdout)
    assert (result.exit_code, diagnosis["problems"]) == (0, [])
    assert diagnosis["in_force"]["settings"] == str(bento / "src" / "kaiten.yaml")
    assert diagnosis["in_force"]["environment"] == "production"
    assert diagnosis["in_force"]["home"] == str(tmp_path)
    assert [model["tag"] for model in diagnosis["models"]] == ["ours:1.0.0"]
    facts = diagnosis["bento"]
    assert (facts["revision"], facts["packages"]) == ("c0ffee", 1)
    (difference,) = facts["differences"]
    assert difference.startswith("numpy is pinned to 0.1, and is ")
    assert not list(bento.rglob("__pycache__"))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no requirements": lambda folder: (folder / REQUIREMENTS).unlink(),
    "a changed requirement": lambda folder: (folder / REQUIREMENTS).write_text("num\0py==1\n"),
    "changed code": lambda folder: (folder / "src/cli/doctor.py").write_text("1 / 0\n"),
    "a truncated provenance": lambda folder: (folder / PROVENANCE).write_text('{"subject": ['),
    "another provenance": lambda folder: (folder / PROVENANCE).write_text("[]"),
    "a truncated bento.yaml": lambda folder: (folder / "bento.yaml").write_text("name: [a"),
    "an empty bento.yaml": lambda folder: (folder / "bento.yaml").write_text(""),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_changed_bento_is_reported_and_its_code_does_not_run(
    damage: str, bento: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    DAMAGE[damage](bento)
    # Only there: other modules run programs as well.
    monkeypatch.setattr("server.bento_diagnosis.subprocess", None)
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, ["doctor", str(bento)])
    assert result.exit_code == 1, result.exception
    problems = result.stdout.partition("The service would not start:")[2].strip().splitlines()
    assert len(problems) == 1
    assert "was changed after it was built. First move" in problems[0]


def test_lost_models_are_problems_and_missing_packages_a_note(
    bento: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bento / REQUIREMENTS).write_text("no-such-package==1.0\n", "utf-8")
    lock(bento)
    shutil.rmtree(ModelStore().get("ours:1.0.0").folder)
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, ["doctor", f"kaiten_service:{bento.name}"])
    assert result.exit_code == 1
    assert str(bento) in result.stdout
    problems = result.stdout.partition("The service would not start:")[2].strip().splitlines()
    assert [problem.split(":")[0].strip() for problem in problems] == ["serving.models"]
    assert "restore ours:1.0.0 from a copy" in problems[0]
    # Not each pin is needed here, and the bento's own code reports a package that it lacks.
    assert "note: no-such-package is pinned, and is not installed here" in result.stdout
    command = f"note: Run: cd {bento / 'env' / 'python'} && "
    assert f"{command}{install_command(['-r', 'requirements.txt'])}" in result.stdout


def test_bento_that_bentoml_alone_has_built_is_not_pinned(bento: Path) -> None:
    (bento / PROVENANCE).unlink()
    result = CliRunner().invoke(app, ["doctor", str(bento)])
    assert result.exit_code == 0, result.stdout
    assert "not pinned: kaiten build has not made this bento" in result.stdout


def test_code_that_cannot_run_here_is_reported_with_the_missing_packages(bento: Path) -> None:
    (bento / REQUIREMENTS).write_text("no-such-package==1.0\n", "utf-8")
    (bento / "src" / "kaiten" / "__init__.py").write_text("import no_such_package\n", "utf-8")
    lock(bento)
    with pytest.raises(SetupError) as caught:
        diagnose_bento(str(bento))
    message = caught.value.message
    assert "ModuleNotFoundError: No module named 'no_such_package'" in message
    assert "These packages are missing: no-such-package. Run: cd " in message


def test_broken_settings_of_bentoml_are_reported_before_the_bento_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_CONFIG", str(tmp_path / "none.yaml"))
    with pytest.raises(InvalidSettings, match="BENTOML_CONFIG"):
        diagnose_bento("kaiten_service:1")


@pytest.mark.parametrize("name", ["1.0.0", "a folder's"])
def test_own_doctor_runs_as_its_message_says(name: str, bento: Path) -> None:
    """Follow the remedy for a bento whose code printed no diagnosis."""
    bento = bento.rename(bento.with_name(name))
    code = bento / "src" / "cli" / "doctor.py"
    code.write_text(f"{code.read_text('utf-8')}\nprint('not JSON')\n", "utf-8")
    lock(bento)
    with pytest.raises(SetupError) as caught:
        diagnose_bento(str(bento))
    command = caught.value.message.partition("Run its own doctor: ")[2]
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "The service would start." in done.stdout
