"""`kaiten drift report` over a real archive and a real model store."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from cli import app
from kaiten.errors import SetupError
from kaiten.events import BASELINE_FILE
from lifecycle.store import ModelStore
from monitors.drift.archive.archive import Archive
from monitors.drift.spool import Part, Source
from monitors.drift.whylogs_profiles import Profile
from monitors.drift.windows import EndedWindow
from tests.unit.lifecycle.cards import store_model
from tests.unit.monitors.drift.profiles import answers, usual

RANDOM = np.random.default_rng(20261128)
ROWS = 1000
TAG = "intent:1.0.0"
LONG = RANDOM.gamma(4, 60, ROWS).round()


def run(*arguments: str) -> Result:
    with capture_logs():
        return CliRunner().invoke(app, ["drift", "report", *arguments])


def run_json(*arguments: str) -> dict[str, Any]:
    result = run("--json", *arguments)
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    return report


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_store: Path) -> Path:
    """Be where nothing is archived yet."""
    monkeypatch.setenv("KAITEN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def archive(home: Path, tmp_path: Path) -> Archive:
    """Return the archive of a validated version: three usual windows, and one of long texts."""
    model = store_model(ModelStore(), TAG, tmp_path)
    report = {
        "card": model.digest,
        "at": datetime.now(UTC).isoformat(),
        "checks": [{"passed": True}],
    }
    model.add_report(json.dumps(report), {BASELINE_FILE: usual(RANDOM, 3000).serialize()})
    archive = Archive(None, home)
    for hours in (5, 4, 3):
        put(archive, hours)
    put(archive, 2, text_length=LONG)
    return archive


def put(archive: Archive, hours_ago: float, tag: str = TAG, **changed: np.ndarray) -> None:
    at = (datetime.now(UTC) - timedelta(hours=hours_ago)).timestamp()
    window = EndedWindow(
        Source(tag, "production"), [Part(Path(str(int(at * 1000)), "part.npy"), at, ROWS)]
    )
    archive.put(Profile.of(answers(RANDOM, ROWS, **changed), window.started_at).serialize(), window)


@pytest.mark.usefixtures("archive")
def test_page_and_lines_show_what_json_reports(tmp_path: Path) -> None:
    page = tmp_path / "drift.html"
    result = run("--output", str(page))
    assert result.exit_code == 0, result.output
    assert f"{TAG} (production), 4000 predictions in 4 windows: drifted" in result.stdout
    (version,) = run_json()["versions"]
    assert (version["rows"], version["drifted"]) == (4000, True)
    assert [window["drifted"] for window in version["windows"]] == [False, False, False, True]
    assert version["features"][0]["name"] == "text_length"
    text = page.read_text(encoding="utf-8")
    assert "4000 answers in 4 windows" in text
    assert version["report"] in text


@pytest.mark.parametrize(
    ("since", "windows"), [("7d", 4), ("150m", 1), ("2020-01-01", 4), ("2020-01-01T10:00+01:00", 4)]
)
@pytest.mark.usefixtures("archive")
def test_only_windows_since_then_are_looked_at(since: str, windows: int) -> None:
    (version,) = run_json("--since", since)["versions"]
    assert len(version["windows"]) == windows


def test_only_the_model_that_is_named_is_looked_at(archive: Archive) -> None:
    for tag in ("intent:1.1.0", "topic:1.0.0"):
        put(archive, 1, tag)
    named = {
        model: [
            f"{report['model']}:{report['version']}" for report in run_json(*options)["versions"]
        ]
        for model, options in (
            ("", ()),
            ("intent", ("--model", "intent")),
            (TAG, ("--model", TAG)),
        )
    }
    assert named == {
        "": [TAG, "intent:1.1.0", "topic:1.0.0"],
        "intent": [TAG, "intent:1.1.0"],
        TAG: [TAG],
    }


def test_a_version_without_a_baseline_says_so(home: Path, tmp_path: Path) -> None:
    store_model(ModelStore(), TAG, tmp_path)
    archive = Archive(None, home)
    put(archive, 1)
    put(archive, 1, "elsewhere:1.0.0")
    reasons = {report["model"]: report["reason"] for report in run_json()["versions"]}
    assert "run `kaiten validate`" in reasons["intent"]
    assert "not in this model store" in reasons["elsewhere"]


def test_a_damaged_profile_is_counted_and_the_others_are_reported(
    home: Path, archive: Archive
) -> None:
    put(archive, 1)
    newest = archive.profiles(Source(TAG, "production"))[-1]
    (home / "profiles" / newest.path).write_bytes(b"no profile")
    report = run_json()
    assert report["unreadable"] == 1
    assert len(report["versions"][0]["windows"]) == 4


@pytest.mark.parametrize("options", [(), ("--model", "intent"), ("--since", "1m")])
def test_missing_profiles_are_reported_with_a_remedy(home: Path, options: tuple[str, ...]) -> None:
    result = run(*options)
    assert isinstance(result.exception, SetupError)
    assert "no profiles of" in result.exception.message
    assert "--since" in result.exception.message


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (("--since", "yesterday"), "--since"),
        (("--since", "0d"), "--since"),
        (("--model", "../x"), "--model"),
        (("--model", "a:b:c"), "--model"),
    ],
)
def test_invalid_option_is_reported_by_name(
    home: Path, options: tuple[str, ...], field: str
) -> None:
    result = run(*options)
    assert result.exit_code == 2
    assert field in result.output


@pytest.mark.usefixtures("archive")
def test_a_page_that_can_not_be_written_is_reported(tmp_path: Path) -> None:
    result = run("--output", str(tmp_path / "no" / "such" / "drift.html"))
    assert isinstance(result.exception, SetupError)
    assert "--output" in result.exception.message


def test_help_has_an_example() -> None:
    assert "Example: kaiten drift report" in " ".join(run("--help").output.split())
