import json
from hashlib import sha256
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from cli import app
from kaiten.errors import InvalidSettings

SECRET = sha256(b"a test").hexdigest()


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name a kaiten.yaml with one setting."""
    path = tmp_path / "kaiten.yaml"
    path.write_text("batching:\n  max_queue_items: 300\n")
    monkeypatch.setenv("KAITEN_CONFIG", str(path))
    monkeypatch.setenv("COLUMNS", "400")
    return path


def run(*arguments: str) -> Result:
    with capture_logs():
        return CliRunner().invoke(app, ["config", *arguments])


def test_show_gives_each_setting_with_its_source(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_BATCHING__MAX_PADDING_RATIO", "0.2")
    lines = [line.split() for line in run("show", "batching").stdout.splitlines()]
    assert ["batching.max_queue_items", "300", f"{file}:2"] in lines
    assert ["batching.max_padding_ratio", "0.2", "KAITEN_BATCHING__MAX_PADDING_RATIO"] in lines
    assert ["batching.max_overtakes", "8", "default"] in lines
    assert ["batching.hang_timeout_s", "empty", "default"] in lines
    assert ["serving.request_timeout_s", "30", "default"] in [
        line.split() for line in run("show", "serving").stdout.splitlines()
    ]
    assert not [line for line in lines if line and line[0].startswith("gateway.")]


def test_show_prints_all_settings_as_json(file: Path) -> None:
    rows = {row["setting"]: row for row in json.loads(run("show", "--json").stdout)}
    expected = {"setting": "batching.max_queue_items", "value": 300, "source": f"{file}:2"}
    assert rows["batching.max_queue_items"] == expected
    assert {"environment", "home", "logging.level", "auth.jwks.refresh_s"} <= rows.keys()


def test_check_accepts_valid_settings(file: Path) -> None:
    result = run("check")
    assert result.exit_code == 0
    assert result.stdout == f"The settings are valid ({file}).\n"


def test_check_names_every_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    # BentoML's own limit is 60 seconds; nothing can be written below a file.
    monkeypatch.setenv("KAITEN_SERVING__REQUEST_TIMEOUT_S", "60")
    monkeypatch.setenv("KAITEN_LOGGING__FOLDER", "/dev/null/logs")
    error = run("check").exception
    assert isinstance(error, InvalidSettings)
    assert {detail.field for detail in error.details} == {
        "serving.request_timeout_s",
        "logging.folder",
    }


def test_check_names_the_line_of_an_invalid_setting(file: Path) -> None:
    file.write_text("batching:\n  max_queue_items: 0\n")
    error = run("check").exception
    assert isinstance(error, InvalidSettings)
    assert "batching.max_queue_items: line 2: " in error.message


def test_check_needs_a_secret_in_production(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_ENVIRONMENT", "production")
    error = run("check").exception
    assert isinstance(error, InvalidSettings)
    assert [detail.field for detail in error.details] == ["auth.secret"]


def test_explain_says_how_to_choose_a_setting(file: Path) -> None:
    lines = run("explain", "max_queue_items").stdout.splitlines()
    assert lines[0] == "batching.max_queue_items"
    assert "Texts of one subject in the queue" in lines[1]
    assert "  type      integer, at least 1" in lines
    assert "  default   512" in lines
    assert f"  value     300 (set in {file}:2)" in lines
    assert "  variable  KAITEN_BATCHING__MAX_QUEUE_ITEMS" in lines
    assert max(map(len, lines[:4])) <= 100


def test_explain_works_on_a_section_and_on_invalid_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KAITEN_RUNNERS__DEVICE", "tpu")
    output = run("explain", "KAITEN_RUNNERS").stdout
    assert "runners.device\n" in output
    assert "runners.threads\n" in output
    assert "  value     unknown: the settings are invalid; see kaiten config check\n" in output


def test_explain_names_the_file_of_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_AUTH__SECRET", SECRET)
    output = run("explain", "auth.secret").stdout
    assert "  value     (not shown) (set in KAITEN_AUTH__SECRET)" in output
    assert "or the file kaiten_auth__secret in the folder KAITEN_SECRETS" in output
