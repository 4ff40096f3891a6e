import os
from pathlib import Path

import pytest

from kaiten.settings import environment as settings_environment
from kaiten.settings.environment import (
    ROOT,
    bentoml_configuration,
    default_home,
    disable_openmp_spinning,
    environment_for,
    find_root,
    metrics_directory,
    settings_file,
)
from kaiten.settings.loader import load_settings
from tests.unit.kaiten.settings.refusals import fields, settings_error


@pytest.mark.parametrize("name", ["missing.yaml", ".", ""])
def test_missing_settings_file_is_rejected(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_CONFIG", str(tmp_path / name) if name else "")
    error = settings_error()
    assert fields(error) == ["KAITEN_CONFIG"]
    assert "give an absolute path" in error.message


def test_config_is_the_checkouts_own_by_default(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings_file() == file
    monkeypatch.delenv("KAITEN_CONFIG")
    assert settings_file() == ROOT / "kaiten.yaml"


def test_config_of_the_working_directory_precedes_the_checkouts(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KAITEN_CONFIG")
    monkeypatch.chdir(file.parent)
    assert settings_file() == file
    file.unlink()
    assert settings_file() == ROOT / "kaiten.yaml"
    # A folder of this name holds no settings.
    file.mkdir()
    assert settings_file() == ROOT / "kaiten.yaml"


def test_config_of_the_working_directory_that_another_user_controls_is_rejected(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KAITEN_CONFIG")
    monkeypatch.chdir(file.parent)
    file.chmod(0o666)
    error = settings_error()
    assert fields(error) == [str(file)]
    assert f"can be changed by every user; run: chmod o-w {file}, or name the" in error.message
    file.chmod(0o664)
    assert settings_file() == file
    if os.getuid() == 0:
        os.chown(file, 1, -1)
    else:
        user = os.getuid() + 1
        monkeypatch.setattr(os, "getuid", lambda: user)
    assert "belongs to user" in settings_error().message
    # KAITEN_CONFIG accepts any owner.
    monkeypatch.setenv("KAITEN_CONFIG", str(file))
    assert settings_file() == file


def test_bento_reads_its_own_config(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KAITEN_CONFIG")
    monkeypatch.chdir(file.parent)
    source = tmp_path / "bento" / "src"
    source.mkdir(parents=True)
    monkeypatch.setattr(settings_environment, "ROOT", source)
    assert settings_file() == file
    (tmp_path / "bento" / "bento.yaml").touch()
    assert settings_file() is None
    (source / "kaiten.yaml").touch()
    assert settings_file() == source / "kaiten.yaml"


def test_wheel_has_the_top_level_files_inside_the_package(tmp_path: Path) -> None:
    package = tmp_path / "site-packages" / "kaiten"
    package.mkdir(parents=True)
    (package.parent / "service.py").touch()
    assert find_root(package) == package.parent
    (package / "bundle").mkdir()
    assert find_root(package) == package / "bundle"


def test_environment_for_replaces_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_HOME", "before")
    environment = environment_for({"KAITEN_HOME": "after"})
    assert environment == {**os.environ, "KAITEN_HOME": "after"}
    assert os.environ["KAITEN_HOME"] == "before"


@pytest.mark.parametrize("value", ["/somewhere", None])
def test_bentomls_own_variables_are_read(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BENTOML_CONFIG", "PROMETHEUS_MULTIPROC_DIR"):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert bentoml_configuration() == value
    assert metrics_directory() == value


def test_openmp_does_not_spin_unless_the_environment_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY")
    disable_openmp_spinning()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    disable_openmp_spinning()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


@pytest.fixture
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let no variable name the home, in a working directory outside the checkout."""
    monkeypatch.delenv("KAITEN_HOME")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_home_of_a_checkout_is_inside_it_wherever_a_command_is_started(no_home: Path) -> None:
    assert load_settings().home == ROOT / ".kaiten"


def test_empty_home_is_the_default(no_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_HOME", "")
    assert load_settings().home == ROOT / ".kaiten"


@pytest.mark.parametrize("files", [[], ["pyproject.toml"], ["../bento.yaml"]])
def test_home_of_an_installed_kaiten_or_a_bento_is_its_users(
    files: list[str], no_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = no_home / "place" / "src"
    package.mkdir(parents=True)
    for name in files:
        (package / name).touch()
    if "../bento.yaml" in files:
        (package / "pyproject.toml").touch()
        (package / "bentofile.yaml").touch()
    monkeypatch.setattr("kaiten.settings.environment.ROOT", package)
    monkeypatch.setenv("XDG_DATA_HOME", str(no_home / "data"))
    assert default_home() == no_home / "data" / "kaiten"
