"""The ledger's parts run on the served code; their cost is not checked here."""

import shutil
from pathlib import Path

import pytest

from benchmarks import ledger
from runners.tasks.text_classification import inspection


def test_every_part_is_measured(
    tiny_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    inspection.inspect(tiny_classifier, folder)
    shutil.copytree(tiny_classifier, folder, dirs_exist_ok=True)
    monkeypatch.setattr(ledger, "REQUESTS", 20)
    monkeypatch.setattr(ledger, "ROUNDS", 1)
    texts = [f"w1 w{number}" for number in range(40)]
    costs = ledger.parts(folder, texts, str(tmp_path))
    assert list(costs) == ["edge", "token", "tokenise", "queue", "infer", "finish", "observe"]
    # Two of the parts are differences, which may come out below nothing in so few requests.
    assert all(costs[part] > 0 for part in ("token", "tokenise", "queue", "infer", "finish"))
