from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from kaiten.errors import InvalidSettings
from kaiten.settings import Runners
from runners.engines.torch_engine import TorchEngine, choose_device

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a CUDA device")


@pytest.fixture
def threads() -> Iterator[int]:
    """Return torch's number of threads, and put it back."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_cpu_is_the_cpu() -> None:
    assert choose_device("cpu") == torch.device("cpu")


def test_auto_takes_what_there_is() -> None:
    found = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device("auto") == torch.device(found)


@without_cuda
@pytest.mark.parametrize("wanted", ["cuda", "cuda:1"])
def test_cuda_is_refused_where_there_is_none(wanted: str) -> None:
    with pytest.raises(InvalidSettings, match=f"is {wanted}, but .* use cpu") as caught:
        choose_device(wanted)
    assert [detail.field for detail in caught.value.details] == ["runners.device"]


@without_cuda
def test_engine_does_not_fall_back_in_silence(tiny_classifier: Path) -> None:
    with pytest.raises(InvalidSettings):
        TorchEngine(tiny_classifier, Runners(device="cuda"))


def test_threads_are_as_set(tiny_classifier: Path, threads: int) -> None:
    engine = TorchEngine(tiny_classifier, Runners(device="cpu", threads=threads + 1))
    engine.logits([[2, 5, 3]], pad_id=0)
    assert torch.get_num_threads() == threads + 1


def test_zero_threads_leave_torchs_own(tiny_classifier: Path, threads: int) -> None:
    engine = TorchEngine(tiny_classifier, Runners(device="cpu", threads=0))
    engine.logits([[2, 5, 3]], pad_id=0)
    assert torch.get_num_threads() == threads


def test_logits_have_a_row_a_text_and_a_column_a_label(tiny_classifier: Path) -> None:
    engine = TorchEngine(tiny_classifier, Runners(device="cpu"))
    logits = engine.logits([[2, 5, 6, 7, 3], [2, 3], [2, 5, 3]], pad_id=0)
    assert logits.shape == (3, 3)
    assert logits.dtype == np.float32


@pytest.mark.parametrize("pad_id", [0, 9])
def test_padding_has_no_say(pad_id: int, tiny_classifier: Path) -> None:
    engine = TorchEngine(tiny_classifier, Runners(device="cpu"))
    alone = engine.logits([[2, 5, 3]], pad_id=0)
    together = engine.logits([[2, 5, 3], [2, *range(5, 45), 3]], pad_id)
    np.testing.assert_allclose(together[:1], alone, atol=1e-4)
