"""The wheel in an environment of its own: it serves without a checkout."""

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from tests.servers import ROOT, environment, free_port, running

MODEL = "tiny:1.0.0"


@dataclass(frozen=True)
class Installation:
    """The wheel, the environment that it is installed in, and the variables of its commands."""

    wheel: Path
    folder: Path
    env: Mapping[str, str]

    @property
    def command(self) -> str:
        return str(self.folder / "bin" / "kaiten")

    def run(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.command, *arguments],
            cwd=cwd,
            env=self.env,
            check=False,
            capture_output=True,
            text=True,
        )


@pytest.fixture(scope="module")
def installation(tiny_classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Install the wheel beside the dependencies of this environment, and register a model."""
    folder = tmp_path_factory.mktemp("wheel")
    uv = [sys.executable, "-m", "uv"]
    # As `make package` builds it, with the setuptools that torch requires.
    build = [*uv, "build", "--quiet", "--no-build-isolation", "--python", sys.executable]
    subprocess.run([*build, "--out-dir", str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(target := folder / "env", symlinks=True, with_pip=False)
    paths = {"base": str(target), "platbase": str(target)}
    packages = Path(sysconfig.get_path("purelib", "venv", paths))
    # Not as a site folder: this environment's own .pth files lead to the checkout.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    install = [*uv, "pip", "install", "--quiet", "--offline", "--no-deps"]
    subprocess.run([*install, "--python", str(target / "bin/python"), str(wheel)], check=True)
    variables = environment(folder / "bentoml", folder / "home")
    # It may lead to a checkout.
    variables.pop("PYTHONPATH", None)
    installation = Installation(wheel, target, variables)
    options = ("--name", "tiny", "--version", "1.0.0", "--task", "text-classification")
    done = installation.run("register", str(tiny_classifier), *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return installation


def test_wheel_holds_the_packages_and_the_top_level_files_in_one(
    installation: Installation,
) -> None:
    with zipfile.ZipFile(installation.wheel) as wheel:
        names = {Path(name).parts for name in wheel.namelist()}
    packages = {parts[0] for parts in names if not parts[0].endswith(".dist-info")}
    assert packages == {
        *("cli", "gateway", "kaiten", "lifecycle", "monitors", "runners", "server"),
    }
    bundle = {parts[2] for parts in names if parts[:2] == ("kaiten", "bundle")}
    assert bundle == {"service.py", "kaiten.yaml", "configuration.yaml"}


def test_settings_are_the_wheels_own_by_default(installation: Installation, tmp_path: Path) -> None:
    done = installation.run("doctor", "--json", cwd=tmp_path)
    diagnosis: dict[str, Any] = json.loads(done.stdout)
    bundle = Path(diagnosis["in_force"]["settings"]).parent
    assert bundle.relative_to(installation.folder).parts[-2:] == ("kaiten", "bundle")
    assert diagnosis["in_force"]["bentoml"] == str(bundle / "configuration.yaml")
    # The one problem: the model of these settings is in no store.
    assert {problem["field"] for problem in diagnosis["problems"]} == {"serving.models"}


@pytest.mark.parametrize(
    ("name", "variables", "models", "options"),
    [
        ("kaiten.yaml", {}, MODEL, ()),
        (
            "other.yaml",
            {"KAITEN_CONFIG": "other.yaml"},
            "absent:1.0.0",
            ("--model", MODEL),
        ),
    ],
)
def test_wheel_serves_by_the_files_and_options_of_the_command(
    installation: Installation,
    name: str,
    variables: Mapping[str, str],
    models: str,
    options: Sequence[str],
    tmp_path: Path,
) -> None:
    file = tmp_path / name
    file.write_text(f"serving:\n  models: [{models}]\n")
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "kaiten_auth__secret").write_text(token_hex(32))
    command = [installation.command, "serve", "--port", str(free_port()), *options]
    # BentoML imports the service in its folder, where relative paths name nothing.
    env = {**installation.env, **variables, "KAITEN_SECRETS": secrets.name}
    with running(command, env, cwd=tmp_path) as process:
        process.wait_for("^Ready")
        assert str(file) in process.log
        line = next(line for line in process.lines if line.startswith("curl "))
        done = subprocess.run(["bash", "-c", line], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["model"] == MODEL
    assert "Traceback" not in process.log


def test_wheel_cannot_build_and_names_the_checkout(
    installation: Installation, tmp_path: Path
) -> None:
    done = installation.run("build", "--model", MODEL, cwd=tmp_path)
    assert done.returncode == 1
    assert "cannot build a bento without a checkout" in done.stderr
    assert ".venv/bin/kaiten" in done.stderr
