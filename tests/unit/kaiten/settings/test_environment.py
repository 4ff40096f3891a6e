import os
from pathlib import Path

import pytest

from kaiten.settings import environment as settings_environment
from kaiten.settings.environment import (
    ROOT,
    bentoml_configuration,
    disable_openmp_spinning,
    environment_for,
    find_root,
    metrics_directory,
    settings_file,
)
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
