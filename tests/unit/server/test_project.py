from pathlib import Path

import pytest

from server.project import registered_tag, suggest_name


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/srv/models/My Model/", "my-model"),
        ("hf://owner/BERT_base@main", "bert_base"),
        ("models:/intent/3", "3"),
        ("./ümlaut", "mlaut"),
        ("...", ""),
        ("a" * 80, "a" * 63),
    ],
)
def test_name_is_suggested_from_the_source(source: str, name: str) -> None:
    assert suggest_name(source) == name


def test_registered_version_is_told_from_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert registered_tag("intent:1.0.0") == "intent:1.0.0"
    (tmp_path / "intent:1.0.0").mkdir()
    assert registered_tag("intent:1.0.0") is None
    assert registered_tag("models:/intent/3") is None
    assert registered_tag("hf://owner/name") is None
    assert registered_tag("intent") is None
