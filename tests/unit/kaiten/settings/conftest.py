from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name an empty kaiten.yaml, so that the checkout's plays no part."""
    path = tmp_path / "kaiten.yaml"
    path.touch()
    monkeypatch.setenv("KAITEN_CONFIG", str(path))
    return path
