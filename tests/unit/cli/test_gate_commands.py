"""validate, promote, rollback, model audit-log and diff on a tiny model; release evidence."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from cli import app
from kaiten.settings.loader import load_settings
from kaiten.settings.models import Evidence, RunnerSettings
from lifecycle.card import Provenance
from lifecycle.release_evidence import ReleaseRepository, gather_evidence
from lifecycle.store import ModelStore
from runners import embedding_distance
from runners.tasks.text_classification.serving import load
from server.models import find_models
from tests.unit.lifecycle.cards import card, store_model

TEXTS = [f"w{number} w{number * 7 % 50} w{number * 3 % 40}" for number in range(40)]
ALL: tuple[Evidence, ...] = ("commit", "tests", "tag", "changelog")


def run(*arguments: str) -> Result:
    with capture_logs():
        return CliRunner().invoke(app, arguments)


@pytest.fixture
def model_tag(tiny_classifier: Path, model_store: Path) -> str:
    options = ["--name", "tiny", "--version", "1.0.0", "--task", "text-classification"]
    assert run("register", str(tiny_classifier), *options).exit_code == 0
    return "tiny:1.0.0"


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an untrained model pass."""
    for name in ("MIN_ACCURACY", "MIN_MACRO_F1"):
        monkeypatch.setenv(f"KAITEN_VALIDATION__{name}", "0")
    monkeypatch.setenv("KAITEN_VALIDATION__MAX_CALIBRATION_ERROR", "1")
    monkeypatch.setenv("KAITEN_RUNNERS__THREADS", "1")


def data(folder: Path, **columns: str) -> str:
    """Write rows with labels that mean nothing."""
    labels = ("billing", "delivery", "other")
    rows = [
        {"text": text, "label": labels[number % 3], "channel": ("mail", "chat")[number % 2]}
        for number, text in enumerate(TEXTS)
    ]
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row | columns) for row in rows))
    return str(file)


def audit_log_end(name: str) -> str:
    """Return the line about the last entry of a model's audit log."""
    entry = ModelStore().audit_log(name).entries()[-1]
    return f"The audit log of {name} ends with entry {entry.number}, {entry.digest}."


@pytest.mark.usefixtures("lenient")
def test_from_a_report_to_production_and_back(model_tag: str, tmp_path: Path) -> None:
    rows = data(tmp_path)
    result = run("validate", model_tag, "--data", rows, "--slice", "channel", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["measures"]["rows"] == 40
    assert {value: rows for value, (rows, _) in report["slices"]["channel"].items()} == {
        "mail": 20,
        "chat": 20,
    }
    # The cache for an interrupted validation is removed.
    assert not list((tmp_path / "validation").glob("*.f32"))
    for stage in ("staging", "production"):
        moved = run("promote", model_tag, "--to", stage, "--reason", "it is better")
        assert f"tiny:1.0.0 is now the version in {stage}." in moved.stdout
        assert "until they are restarted, and a bento keeps" in moved.stdout
        assert moved.stdout.splitlines()[-1] == audit_log_end("tiny")
    log = run("model", "audit-log", "tiny")
    assert [word in log.stdout for word in ("registered", "validated, passed", "it is better")]
    assert run("rollback", "tiny", "--reason", "a try").exit_code == 1


@pytest.mark.usefixtures("lenient")
def test_report_is_the_reference_that_answers_are_measured_from(
    model_tag: str, tmp_path: Path
) -> None:
    model, rows = ModelStore().get(model_tag), data(tmp_path)

    def reference() -> Path | None:
        return model.baseline

    assert reference() is None
    assert run("validate", model_tag, "--data", rows).exit_code == 0
    first = reference()
    assert first is not None
    files = {
        *("report.json", "report.html", "reference.bin"),
        *("centroids.npz", "calibration.json"),
    }
    assert {file.name for file in first.iterdir()} == files
    # A centroid for each label that was answered with, as wide as the network's pooled output.
    task = load(model.folder, model.card.max_length, RunnerSettings(device="cpu", threads=1), first)
    items = task.processor.prepare(TEXTS)
    predictions = task.processor.finish(items, task.model.infer(items))
    centroids = embedding_distance.read_centroids(first)
    assert centroids is not None
    assert centroids.shape == (len({prediction.index for prediction in predictions}), 32)
    assert all(
        prediction.distance is not None and 0 <= prediction.distance <= 2
        for prediction in predictions
    )
    assert max(prediction.distance or 0 for prediction in predictions) > 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAITEN_VALIDATION__MIN_ACCURACY", "1")
        assert run("validate", model_tag, "--data", rows).exit_code == 1
    assert reference() == first
    assert run("validate", model_tag, "--data", rows).exit_code == 0
    assert reference() not in {first, None}


@pytest.mark.usefixtures("lenient")
def test_second_version_is_compared_with_production(
    model_tag: str, tiny_classifier: Path, tmp_path: Path
) -> None:
    rows = data(tmp_path)
    run("validate", model_tag, "--data", rows)
    for stage in ("staging", "production"):
        run("promote", model_tag, "--to", stage, "--reason", "first")
    named = ["--name", "tiny", "--bump", "auto", "--task", "text-classification"]
    assert "Registered tiny:1.0.1" in run("register", str(tiny_classifier), *named).stdout
    report = json.loads(run("validate", "tiny:1.0.1", "--data", rows, "--json").stdout)
    # The same weights answer the same.
    assert report["comparison"]["baseline"] == "tiny:1.0.0"
    assert (report["comparison"]["difference"], report["comparison"]["p_value"]) == (0, 1)
    for stage in ("staging", "production"):
        moved = run("promote", "tiny:1.0.1", "--to", stage, "--reason", "second", "--json")
        assert json.loads(moved.stdout)["stage"] == stage
    back = run("rollback", "tiny", "--reason", "complaints")
    assert back.stdout.startswith("tiny:1.0.0 is now the version in production.")
    assert back.stdout.splitlines()[-1] == audit_log_end("tiny")
    assert "production rolled back to" in run("model", "audit-log", "tiny").stdout
    newer, older = json.loads(run("model", "list", "--json").stdout)
    assert (newer["version"], newer["stages"], newer["serves"]) == ("1.0.1", [], False)
    assert (older["version"], older["stages"]) == ("1.0.0", ["production"])
    accuracy = report["measures"]["accuracy"]
    assert older["report"]["measures"]["accuracy"] == pytest.approx(accuracy)
    line = next(line for line in run("model", "list").stdout.splitlines() if "1.0.0" in line)
    assert line.split() == [
        *("tiny:1.0.0", "text-classification", "3", "onnx", "production", f"{accuracy:.3f}", "no")
    ]
    shown = run("model", "show", "tiny:1.0.1").stdout
    assert "billing, delivery, other" in shown
    assert "validation: verdict" in shown


@pytest.mark.usefixtures("lenient")
def test_stage_in_serving_models_is_served_and_listed_as_served(
    model_tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("validate", model_tag, "--data", data(tmp_path))
    monkeypatch.setenv("KAITEN_SERVING__MODELS", "tiny@staging")
    assert json.loads(run("model", "list", "--json").stdout)[0]["serves"] is False
    run("promote", model_tag, "--to", "staging", "--reason", "first")
    assert json.loads(run("model", "list", "--json").stdout)[0]["serves"] is True
    (served,) = find_models(load_settings())
    assert served.card.tag == model_tag


@pytest.mark.usefixtures("lenient")
def test_diff_shows_measures_first_and_no_digest(
    model_tag: str, tiny_classifier: Path, tmp_path: Path
) -> None:
    named = ["--name", "tiny", "--bump", "auto", "--task", "text-classification"]
    run("register", str(tiny_classifier), *named)
    run("validate", model_tag, "--data", data(tmp_path))
    rows = json.loads(run("model", "diff", "tiny:1.0.0", "tiny:1.0.1", "--json").stdout)
    assert [*rows][:3] == ["verdict", "rows", "accuracy"]
    assert rows["verdict"] == ["passed", None]
    assert rows["rows"] == ["40", None]
    assert not any(
        re.fullmatch("[0-9a-f]{64}", value or "") for row in rows.values() for value in row
    )


@pytest.mark.usefixtures("lenient")
def test_version_is_measured_by_the_thresholds_of_its_model(
    model_tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = "validation.models.tiny.min_accuracy"
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("KAITEN_VALIDATION__MODELS", '{"tiny": {"min_accuracy": 1}, "other": {}}')
    result = run("validate", model_tag, "--data", data(tmp_path))
    assert result.exit_code == 1
    assert f"thresholds set for this model: {setting}" in result.stderr
    assert setting in Path(result.stdout.strip()).read_text()
    refused = run("promote", model_tag, "--to", "staging", "--reason", "a try")
    assert setting in str(refused.exception)
    # The rows are counted before anything is measured.
    monkeypatch.setenv("KAITEN_VALIDATION__MODELS", '{"tiny": {"min_rows": 41}}')
    few = run("validate", model_tag, "--data", data(tmp_path))
    assert "has 40 rows, under the 41 of validation.models.tiny.min_rows" in str(few.exception)


@pytest.mark.usefixtures("lenient")
def test_labels_that_are_indices_are_validated_by_their_names(
    model_tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    rows = Path(data(tmp_path))
    named = run("validate", model_tag, "--data", str(rows), "--json")
    indices = {label: index for index, label in enumerate(ModelStore().get(model_tag).card.labels)}
    records = [json.loads(line) for line in rows.read_text().splitlines()]
    indexed = tmp_path / "indexed.jsonl"
    indexed.write_text(
        "\n".join(json.dumps({**row, "label": indices[row["label"]]}) for row in records)
    )
    result = run("validate", model_tag, "--data", str(indexed))
    first = next(iter(indices))
    assert f"its labels are indices of the model's labels: 0 stands for {first}" in result.stderr
    page = Path(result.stdout.strip())
    assert f"0 stands for {first}" in " ".join(page.read_text().split())
    report = json.loads((page.parent / "report.json").read_text())
    assert report["measures"] == json.loads(named.stdout)["measures"]


@pytest.mark.usefixtures("lenient")
def test_thresholds_for_a_misspelled_model_are_rejected(
    model_tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_VALIDATION__MODELS", '{"tiney": {"min_accuracy": 1}}')
    rejected = run("validate", model_tag, "--data", data(tmp_path))
    assert rejected.exit_code == 1
    assert (
        "validation.models.tiney: no model of this name is registered; did you mean tiny?"
        in str(rejected.exception)
    )
    # The model's own thresholds are there, so the other name belongs to another model.
    names = '{"tiney": {"min_accuracy": 1}, "tiny": {}}'
    monkeypatch.setenv("KAITEN_VALIDATION__MODELS", names)
    assert run("validate", model_tag, "--data", data(tmp_path)).exit_code == 0


def test_report_that_does_not_pass_exits_1(model_tag: str, tmp_path: Path) -> None:
    result = run("validate", model_tag, "--data", data(tmp_path))
    assert result.exit_code == 1
    assert "refused: accuracy is" in result.output


@pytest.mark.usefixtures("lenient")
def test_golden_rows_that_are_answered_otherwise_refuse(model_tag: str, tmp_path: Path) -> None:
    rows = data(tmp_path)
    first = json.loads(run("validate", model_tag, "--data", rows, "--json").stdout)
    golden = tmp_path / "golden.jsonl"
    wrong = {"text": TEXTS[0], "label": "billing"}, {"text": TEXTS[0], "label": "delivery"}
    golden.write_text("\n".join(json.dumps(row) for row in wrong))
    result = run("validate", model_tag, "--data", rows, "--golden", str(golden), "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert len(report["golden"]["wrong"]) >= 1
    assert report["measures"] == first["measures"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x" * 21, "row 2 (line 3), column 'text': has over 20 characters"),
        ("\u200b", "row 2 (line 3), column 'text': contains no visible character"),
        ("\ue000", "row 2 (line 3), column 'text': is empty to the model tiny:1.0.0"),
    ],
)
@pytest.mark.usefixtures("lenient")
def test_row_that_the_api_would_refuse_is_not_measured(
    text: str, problem: str, model_tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_GATEWAY__MAX_TEXT_CHARS", "20")
    rows = tmp_path / "rows.csv"
    lines = [f"a text,{label}" for label in ("billing", "delivery", "other") * 10]
    rows.write_text("\n".join(["text,label", lines[0], f"{text},billing", *lines]))
    result = run("validate", model_tag, "--data", str(rows))
    assert result.exit_code == 1
    assert str(result.exception).startswith(f"{rows}: {problem}. ")
    assert ModelStore().get(model_tag).baseline is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["validate", "tiny:1.0.0", "--data", "/no/such.jsonl"], "cannot be read"),
        (["promote", "tiny:1.0.0", "--to", "staging", "--reason", "  "], "--reason is empty"),
        (["model", "audit-log", "unknown"], "unknown has no audit log"),
        (
            ["promote", "tiny:9.9.9", "--to", "staging", "--reason", "a"],
            "is not in the model store",
        ),
    ],
)
@pytest.mark.usefixtures("model_tag")
def test_correctable_error_is_reported(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert message in str(result.exception)


def test_diff_shows_what_the_cards_say_differently(model_store: Path, tmp_path: Path) -> None:
    for version in ("1.0.0", "1.0.1"):
        store_model(ModelStore(), f"ours:{version}", tmp_path)
    differences = json.loads(run("model", "diff", "ours:1.0.0", "ours:1.0.1", "--json").stdout)
    assert differences.keys() == {"version", "registered_at", "model.safetensors"}
    assert differences["version"] == ["1.0.0", "1.0.1"]
    assert differences["model.safetensors"] == ["present", "changed"]
    assert "1.0.1" in run("model", "diff", "ours:1.0.0", "ours:1.0.1").stdout


def git(folder: Path, *arguments: str) -> str:
    named = ("-c", "user.name=tester", "-c", "user.email=tester@localhost")
    command = ["git", "-C", str(folder), *named, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "CHANGELOG.md").write_text("# Changes\n\n## [1.2.0] - 2026-11-25\n\n## 1.2.0-rc.1\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "a release")
    git(folder, "tag", "v1.2.0")
    return folder


def junit(folder: Path, *parts: str) -> Path:
    cases = "".join(f"<testcase name='t'>{part}</testcase>" for part in parts)
    file = folder / "junit.xml"
    file.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    return file


def test_evidence_is_what_the_repository_shows(repository: Path, tmp_path: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    model_card = card("ours:1.2.0", provenance=Provenance(git_commit=commit))
    tests = junit(tmp_path, "", "", "<skipped/>")
    evidence = gather_evidence(model_card, ReleaseRepository(repository, tests), ALL)
    assert (evidence["commit"], evidence["tag"]) == (commit, "v1.2.0")
    assert evidence["changelog"].startswith("## [1.2.0]")
    assert evidence["tests"].startswith("2 tests, ")
    assert gather_evidence(model_card, ReleaseRepository(repository, tests), ("tag",)).keys() == {
        "tag"
    }


@pytest.mark.parametrize("parts", [("", "<failure/>"), ("<error/>",), ("<skipped/>",), ()], ids=str)
def test_tests_that_do_not_pass_are_no_evidence(parts: tuple[str, ...], tmp_path: Path) -> None:
    tests = junit(tmp_path, *parts)
    assert gather_evidence(card(), ReleaseRepository(tmp_path, tests), ("tests",)) == {}


@pytest.mark.parametrize(
    "content", ["no XML", "<!DOCTYPE a [<!ENTITY b 'c'>]><testsuite><testcase/></testsuite>"]
)
def test_report_that_is_none_is_no_evidence(content: str, tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(content)
    repository = ReleaseRepository(tmp_path, tmp_path / "junit.xml")
    assert gather_evidence(card(), repository, ("tests",)) == {}


def test_evidence_for_another_version_is_none(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    git(repository, "commit", "-qm", "later", "--allow-empty")
    later = git(repository, "rev-parse", "HEAD")
    for version, card_commit in (("1.2.1", commit), ("1.2.0", later), ("1.2.0", "0" * 40)):
        evidence = gather_evidence(
            card(f"ours:{version}", provenance=Provenance(git_commit=card_commit)),
            ReleaseRepository(repository, None),
            ALL,
        )
        assert "tag" not in evidence
        assert ("changelog" in evidence) is (version == "1.2.0")
        assert ("commit" in evidence) is (card_commit != "0" * 40)
    assert gather_evidence(card(), ReleaseRepository(repository / "absent", None), ALL) == {}
