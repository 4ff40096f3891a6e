"""Short texts on ONNX Runtime and long ones on torch, as one engine."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from kaiten.settings.models import RunnerSettings
from runners.engines import LIMIT_FILE, choose_engine, open_engine
from runners.engines.base import TokenBatch
from runners.engines.long_texts import LongTextEngine
from runners.engines.torch_engine import TorchEngine
from runners.tasks.text_classification import inspection

CPU = RunnerSettings(device="cpu", threads=2)
LIMIT = 16
TEXTS = [[2, *range(5, 5 + length), 3] for length in (1, 40, 7, 14, 15, 2, 50)]


@pytest.fixture
def model_folder(tiny_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Register a model whose maximum is over what an exported network computes."""
    task = "runners.tasks.text_classification"
    for module in ("runners.engines.export", f"{task}.inspection", f"{task}.batch_probes"):
        monkeypatch.setattr(f"{module}.MAX_TOKENS", LIMIT)
    facts = inspection.inspect(tiny_classifier, tmp_path)
    assert facts.engine.name == "onnx"
    assert f"torch computes texts of over {LIMIT} tokens" in facts.engine.reason
    assert facts.packages == ["torch", "transformers"]
    shutil.copytree(tiny_classifier, tmp_path, dirs_exist_ok=True)
    return tmp_path


def batch(*indices: int) -> TokenBatch:
    return TokenBatch.of_ids([TEXTS[index] for index in indices], 0)


def test_choice_says_what_torch_computes(model_folder: Path) -> None:
    choice = choose_engine(model_folder, CPU)
    assert (choice.engine, choice.max_onnx_tokens) == ("onnx", LIMIT)
    assert f"torch computes texts of over {LIMIT} tokens" in choice.reason
    assert {"onnxruntime", "torch", "transformers"} <= {*choice.packages}
    assert (
        choose_engine(model_folder, RunnerSettings(device="cpu", engine="torch")).max_onnx_tokens
        is None
    )


def test_texts_of_any_lengths_are_answered_as_torch_does_alone(model_folder: Path) -> None:
    engine = open_engine(model_folder, CPU, batch(0, 1))
    assert isinstance(engine, LongTextEngine)
    engine.reserve(512, 8)
    exact = TorchEngine(model_folder, CPU)
    alone = [exact.compute(batch(index)) for index in range(len(TEXTS))]
    for indices in ([*range(7)], [1, 6], [0, 2, 3], [6, 0], [4], [1]):
        together = engine.compute(batch(*indices))
        assert together.embeddings is not None
        for row, index in enumerate(indices):
            embeddings = alone[index].embeddings
            assert embeddings is not None
            np.testing.assert_allclose(together.logits[row], alone[index].logits[0], atol=1e-4)
            np.testing.assert_allclose(together.embeddings[row], embeddings[0], atol=1e-4)


def test_lanes_share_the_torch_thread(model_folder: Path) -> None:
    engine = open_engine(model_folder, CPU, batch(0))
    expected = engine.compute(batch(*range(7))).logits
    with ThreadPoolExecutor(engine.lanes) as lanes:
        answers = lanes.map(lambda _: engine.compute(batch(*range(7))).logits, range(8))
        for logits in answers:
            np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_model_within_the_limit_needs_no_torch(tiny_classifier: Path, tmp_path: Path) -> None:
    facts = inspection.inspect(tiny_classifier, tmp_path)
    assert facts.packages == []
    assert not (tmp_path / LIMIT_FILE).exists()
    assert "torch" not in choose_engine(tmp_path, CPU).packages
