"""The committed documents are what the code makes."""

import json
from pathlib import Path

import pytest

from gateway.api_versions import DOCUMENTS
from tests.contract import __main__, written
from tests.contract.written import (
    MAKE,
    ROOT,
    breaking_change_message,
    breaking_changes,
    document_of,
    generated_files,
    path_of,
    read,
)


@pytest.mark.parametrize("version", DOCUMENTS)
def test_the_wire_does_not_change_without_a_version(version: str) -> None:
    changes = breaking_changes(version)
    assert not changes, breaking_change_message(version, changes)


@pytest.mark.parametrize("path", generated_files(), ids=lambda path: path.name)
def test_a_committed_file_is_what_the_code_makes(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == generated_files()[path], (
        f"{path.relative_to(ROOT)} is not what the code makes. If no caller would break, run "
        f"`{MAKE}` and tell of the change in CHANGELOG.md; otherwise it needs a new version."
    )


def test_nothing_is_written_over_a_wire_that_would_break(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(written, "ROOT", tmp_path)
    monkeypatch.setattr(__main__, "ROOT", tmp_path)
    assert __main__.main() == 0
    assert capsys.readouterr().out.split() == [
        "docs/openapi/v1.json",
        "docs/openapi/v2.json",
        "docs/reference/errors.md",
    ]
    assert read(path_of("2")) == document_of("2")
    # As if there had been a route that the code has no more.
    older = read(path_of("2"))
    older["paths"]["/api/v2/rank"] = older["paths"]["/api/v2/predict"]
    path_of("2").write_text(json.dumps(older), encoding="utf-8")
    before = path_of("2").read_bytes()
    assert __main__.main() == 1
    assert "POST /api/v2/rank: is gone" in capsys.readouterr().err
    assert path_of("2").read_bytes() == before
