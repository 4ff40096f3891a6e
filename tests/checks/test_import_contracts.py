import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from kaiten.settings.environment import ROOT

# A forbidden import for each contract, by its name, in a module that did not exist before.
PLANTED = {
    "adapters above the composition root, siblings apart, the foundation below": (
        "monitors/planted.py",
        "import gateway.errors",
    ),
    "kaiten.errors: standard library only": ("kaiten/errors.py", "import pydantic"),
    "the foundation knows no framework": ("kaiten/planted.py", "import starlette"),
    "torch and transformers only in runners": ("lifecycle/evaluate/planted.py", "import torch"),
    "whylogs only in monitors.drift": ("monitors/feedback/planted.py", "import whylogs"),
    "the database only in monitors.feedback": ("monitors/drift/planted.py", "import sqlalchemy"),
    "jwt only in gateway.auth": ("gateway/middleware/planted.py", "import jwt"),
    "redis only in the two stores that are kept in it": ("gateway/auth/planted.py", "import redis"),
    "bentoml only in the composition root and the model store": (
        "lifecycle/planted.py",
        "import bentoml",
    ),
    "prometheus_client only in monitors.metrics": (
        "monitors/logging/planted.py",
        "import prometheus_client",
    ),
    "the server shares no code with its client": ("server/planted.py", "import kaiten_client"),
}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LINTER = PYPROJECT["tool"]["importlinter"]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the linter says of a copy with all of them."""
    copy = tmp_path_factory.mktemp("house")
    for package in LINTER["root_packages"]:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, copy / package, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", copy)
    for path, statement in PLANTED.values():
        module = copy / path
        text = module.read_text(encoding="utf-8") if module.exists() else ""
        module.write_text(f"{text}\n{statement}\n", encoding="utf-8")
    # The copy's modules, whatever is installed.
    code = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command"
    finished = subprocess.run(
        [sys.executable, "-c", f"{code}; lint_imports_command(['--no-cache'])"],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    return finished.stdout


def test_every_contract_has_a_planted_import() -> None:
    assert PLANTED.keys() == {contract["name"] for contract in LINTER["contracts"]}


@pytest.mark.parametrize("contract", PLANTED)
def test_a_forbidden_import_in_a_new_module_is_refused(contract: str, report: str) -> None:
    assert f"{contract} BROKEN" in " ".join(report.split())


@pytest.mark.parametrize(
    "contract", LINTER["contracts"], ids=lambda contract: str(contract["name"])
)
def test_sources_are_whole_packages(contract: dict[str, object]) -> None:
    sources = contract.get("source_modules", [])
    assert isinstance(sources, list)
    assert set(sources) <= {*LINTER["root_packages"], "kaiten.errors"}


def test_the_roots_are_all_packages_of_the_server() -> None:
    packages = {path.parent.name for path in Path(ROOT).glob("*/__init__.py")}
    assert packages - {"tests", "benchmarks", "examples"} == {*LINTER["root_packages"]}
