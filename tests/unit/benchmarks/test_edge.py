"""Every kind of credential is measured, and a missed target is reported."""

import json
from pathlib import Path

import pytest

from benchmarks import edge, ledger, places


def test_every_way_gets_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "REQUESTS", 3)
    monkeypatch.setattr(ledger, "ROUNDS", 1)
    passes_us = edge.measure(str(tmp_path), None)
    assert passes_us.keys() == edge.MARKS.keys() - {"known token, limits in Redis"}
    assert all(cost_us > 0 for passes in passes_us.values() for cost_us in passes)


def test_missed_mark_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "RESULTS", tmp_path)
    passes_us = {
        "known token": [501.0],
        "fresh ES256 token": [999.0],
        "fresh RS256 token": [5000.0],
    }
    assert edge.write(passes_us, "2026-01-01") == ["known token"]
    written = json.loads((tmp_path / "2026-01-01-edge.json").read_text())
    assert written["ways"]["known token"]["us"] == 501
    assert "| fresh ES256 token | 999 |" in (tmp_path / "2026-01-01-edge.md").read_text()
