import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from kaiten.settings.models import RunnerSettings
from runners.engines.base import TokenBatch
from runners.engines.torch_engine import TorchEngine


@pytest.fixture
def threads() -> Iterator[int]:
    """Return torch's number of threads, and put it back."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_threads_are_as_set(tiny_classifier: Path, threads: int) -> None:
    engine = TorchEngine(tiny_classifier, RunnerSettings(device="cpu", threads=threads + 1))
    engine.compute(TokenBatch.of_ids([[2, 5, 3]], 0))
    assert torch.get_num_threads() == threads + 1


def test_zero_threads_leave_torchs_own(tiny_classifier: Path, threads: int) -> None:
    engine = TorchEngine(tiny_classifier, RunnerSettings(device="cpu", threads=0))
    engine.compute(TokenBatch.of_ids([[2, 5, 3]], 0))
    assert torch.get_num_threads() == threads


def test_logits_have_a_row_a_text_and_a_column_a_label(tiny_classifier: Path) -> None:
    engine = TorchEngine(tiny_classifier, RunnerSettings(device="cpu"))
    logits = engine.compute(TokenBatch.of_ids([[2, 5, 6, 7, 3], [2, 3], [2, 5, 3]], 0)).logits
    assert logits.shape == (3, 3)
    assert logits.dtype == np.float32


@pytest.mark.parametrize("pad_id", [0, 9])
def test_padding_has_no_say(pad_id: int, tiny_classifier: Path) -> None:
    engine = TorchEngine(tiny_classifier, RunnerSettings(device="cpu"))
    alone = engine.compute(TokenBatch.of_ids([[2, 5, 3]], 0)).logits
    together = engine.compute(TokenBatch.of_ids([[2, 5, 3], [2, *range(5, 45), 3]], pad_id)).logits
    np.testing.assert_allclose(together[:1], alone, atol=1e-4)


def test_weights_are_in_memory_and_not_in_the_file(tiny_classifier: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_classifier, tmp_path / "model")
    engine = TorchEngine(folder, RunnerSettings(device="cpu"))
    before = engine.compute(TokenBatch.of_ids([[2, 5, 3]], 0)).logits
    for path in folder.glob("*.safetensors"):
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
            file.truncate(0)
    np.testing.assert_array_equal(engine.compute(TokenBatch.of_ids([[2, 5, 3]], 0)).logits, before)
    assert str(folder) not in Path("/proc/self/maps").read_text()
