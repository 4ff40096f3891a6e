import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from cli import app
from kaiten.errors import SetupError
from kaiten.settings.loader import load_settings
from lifecycle.store import ModelStore

FILES = [".gitignore", "README.md", "client.py", "compose.yaml", "kaiten.yaml"]


@pytest.fixture(autouse=True)
def _lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an untrained model pass."""
    for name in ("MIN_ACCURACY", "MIN_MACRO_F1"):
        monkeypatch.setenv(f"KAITEN_VALIDATION__{name}", "0")
    monkeypatch.setenv("KAITEN_VALIDATION__MAX_CALIBRATION_ERROR", "1")
    monkeypatch.setenv("KAITEN_RUNNERS__THREADS", "1")


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Write rows with labels that mean nothing."""
    labels = ("billing", "delivery", "other")
    rows = [
        {"text": f"w{number} w{number * 7 % 50}", "label": labels[number % 3]}
        for number in range(40)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def run(*arguments: str, answers: str | None = None) -> Result:
    with capture_logs():
        return CliRunner().invoke(app, ["init", *arguments], input=answers)


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in sorted(folder.iterdir())}


def error_of(result: Result) -> str:
    assert isinstance(result.exception, SetupError), result.output
    return result.exception.message


@pytest.mark.usefixtures("model_store")
def test_model_becomes_a_project_and_no_file_is_overwritten(
    tiny_classifier: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my project"
    options = ["--model", str(tiny_classifier), "--data", data, "--name", "tiny"]
    result = run(str(folder), *options)
    assert result.exit_code == 0, result.output
    assert "Registered tiny:1.0.0 in " in result.stdout
    assert "tiny:1.0.0 passed on 40 rows" in result.stderr
    assert f"  cd '{folder}'\n  kaiten serve\n" in result.stdout
    assert ModelStore().get("tiny:1.0.0").baseline is not None
    before = contents(folder)
    assert [*before] == FILES
    with monkeypatch.context() as context:
        context.setenv("KAITEN_CONFIG", str(folder / "kaiten.yaml"))
        assert load_settings().serving.models == ("tiny:1.0.0",)

    again = error_of(run(str(folder), *options))
    assert "exists already, and kaiten init overwrites no file" in again
    assert contents(folder) == before
    other = tmp_path / "other"
    message = error_of(run(str(other), *options))
    assert "exists already. To use it, pass --model tiny:1.0.0" in message
    assert not other.exists()
    # As the message says; the name is that of the version.
    assert run(str(other), "--model", "tiny:1.0.0", "--data", data).exit_code == 0
    assert [*contents(other)] == FILES


@pytest.mark.usefixtures("model_store")
def test_in_a_terminal_it_asks_and_a_version_that_does_not_pass_is_a_failure(
    tiny_classifier: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("cli.init.sys", terminal)
    monkeypatch.setenv("KAITEN_VALIDATION__MIN_ACCURACY", "1")
    monkeypatch.chdir(tmp_path)
    # The name that is suggested is that of the folder.
    result = run(answers=f"{tiny_classifier}\n{data}\n\n")
    assert result.exit_code == 1, result.output
    assert "Name of the model [tiny]" in result.stderr
    assert "tiny:1.0.0 refused on 40 rows" in result.stderr
    assert "kaiten validate tiny:1.0.0 --data FILE    # until it passes" in result.stdout
    assert [*contents(tmp_path / "tiny")] == FILES


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ([], "--model, --data and --name are missing. "),
        (["--name", "a"], "--model and --data are missing. "),
        (["--model", "/somewhere", "--name", "a"], "--data is missing. "),
        (["--model", "a:1.0.0"], "--data is missing. "),
    ],
)
def test_without_a_terminal_missing_options_are_named(options: list[str], missing: str) -> None:
    message = error_of(run(*options))
    assert message.startswith(missing)
    assert "standard input is not a terminal" in message


@pytest.mark.usefixtures("model_store")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--name", "Tiny"], "'Tiny' is not a model name"),
        (["--version", "1"], "'1' is not a SemVer version"),
        (["--text-column", "body"], "has no column 'body'"),
        (["--data", "/missing.jsonl"], "cannot be read"),
        (["--model", "other:1.0.0"], "other:1.0.0 is not in the model store"),
    ],
)
def test_problem_is_found_before_the_model_is_registered(
    options: list[str], reason: str, tiny_classifier: Path, data: str, tmp_path: Path
) -> None:
    defaults = ["--model", str(tiny_classifier), "--data", data, "--name", "tiny"]
    assert reason in error_of(run(str(tmp_path / "project"), *defaults, *options))
    assert [*ModelStore()] == []
    assert not (tmp_path / "project").exists()


@pytest.mark.usefixtures("model_store")
@pytest.mark.parametrize("problem", ["too few rows", "a folder that cannot be written"])
def test_rows_and_folder_are_checked_before_the_model_is_registered(
    problem: str,
    tiny_classifier: Path,
    data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, reason = tmp_path / "project", "has 40 rows, under the 41 of validation.min_rows"
    if problem == "too few rows":
        monkeypatch.setenv("KAITEN_VALIDATION__MIN_ROWS", "41")
    else:
        (tmp_path / "file").touch()
        folder = tmp_path / "file" / "project"
        reason = f"{folder} cannot be written: Not a directory"
    options = ["--model", str(tiny_classifier), "--data", data, "--name", "tiny"]
    assert reason in error_of(run(str(folder), *options))
    assert [*ModelStore()] == []
    assert not folder.exists()


@pytest.mark.usefixtures("model_store")
def test_failed_write_leaves_no_file_and_its_remedy_works(
    tiny_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, data = tmp_path / "project", tmp_path / "rows.csv"
    texts = (f"w{number},{('billing', 'delivery')[number % 2]}" for number in range(40))
    data.write_text("\n".join(["body,my topic", *texts]))
    options = ["--data", str(data), "--text-column", "body", "--label-column", "my topic"]
    options.append("--allow-missing-labels")
    with monkeypatch.context() as context:
        # The second file cannot be written.
        files = {"README.md": "written", "missing/client.py": ""}
        context.setattr("server.project.render_files", lambda _: files)
        command = ["--model", str(tiny_classifier), "--name", "tiny", *options]
        message = error_of(run(str(folder), *command))
    assert "missing/client.py cannot be written: No such file or directory" in message
    assert message.endswith("run the command again with --model tiny:1.0.0.")
    assert not folder.exists()
    monkeypatch.setenv("KAITEN_VALIDATION__MIN_ACCURACY", "1")
    result = run(str(folder), "--model", "tiny:1.0.0", *options)
    repeated = "--text-column body --label-column 'my topic' --allow-missing-labels"
    assert f"kaiten validate tiny:1.0.0 --data FILE {repeated}    # until" in result.stdout
    assert f"--data {data} {repeated}\n" in (folder / "README.md").read_text()


@pytest.mark.usefixtures("model_store")
@pytest.mark.parametrize("name", FILES)
def test_file_of_the_user_is_kept(
    name: str, tiny_classifier: Path, data: str, tmp_path: Path
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    # A link to nothing is a file of the user, too.
    (folder / name).symlink_to(tmp_path / "nowhere")
    options = ["--model", str(tiny_classifier), "--data", data, "--name", "tiny"]
    assert f"{folder / name} exists already" in error_of(run(str(folder), *options))
    assert [path.name for path in folder.iterdir()] == [name]
    assert [*ModelStore()] == []
