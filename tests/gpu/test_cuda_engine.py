"""The CUDA engine on a CUDA device: what tests/unit shows of its logic, with kernels and graphs."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from kaiten.errors import OutOfMemory
from kaiten.settings.models import RunnerSettings
from runners.engines.base import TokenBatch
from runners.engines.cuda_engine import CudaEngine
from runners.engines.torch_engine import TorchEngine

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SIZES: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "num_labels": 7,
    "initializer_range": 0.1,
}
LENGTHS = (1, 2, 7, 13, 64, 100, 200, 250)
TEXTS = [[2, *range(10, 10 + length), 3] for length in LENGTHS]
TOKENS, ITEMS = 4096, 64
# Of the largest logit: what half precision rounds.
ROUNDING = 0.05


@pytest.fixture(scope="module", params=["bert", "roberta"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(20261125)
    network: Any
    if request.param == "bert":
        config = BertConfig(**SIZES, max_position_embeddings=256, pad_token_id=0)
        network = BertForSequenceClassification(config)
    else:
        config = RobertaConfig(**SIZES, max_position_embeddings=258, pad_token_id=1)
        network = RobertaForSequenceClassification(config)
    path = tmp_path_factory.mktemp("models") / str(request.param)
    network.save_pretrained(path)
    return path


def pad_id(folder: Path) -> int:
    return 1 if folder.name == "roberta" else 0


def build_engine(folder: Path, **settings: Any) -> CudaEngine:  # noqa: ANN401
    samples = TokenBatch.of_ids(TEXTS, pad_id(folder))
    return CudaEngine(folder, RunnerSettings(device="cuda", **settings), samples)


@pytest.fixture(scope="module")
def engine(folder: Path) -> CudaEngine:
    cuda_engine = build_engine(folder)
    cuda_engine.reserve(TOKENS, ITEMS)
    return cuda_engine


@pytest.fixture(scope="module")
def exact(folder: Path) -> TorchEngine:
    return TorchEngine(folder, RunnerSettings(device="cpu"))


def batches() -> Iterator[list[list[int]]]:
    """Yield batches of mixed lengths, each within the bounds."""
    for size in (1, 2, 3, 8, 31):
        for first in range(len(TEXTS)):
            yield [TEXTS[(first + 3 * step) % len(TEXTS)] for step in range(size)]


def test_alone_padded_and_packed_agree_with_a_cpu(
    engine: CudaEngine, exact: TorchEngine, folder: Path
) -> None:
    assert engine.packed
    pad = pad_id(folder)
    for batch in batches():
        together = TokenBatch.of_ids(batch, pad)
        lone = [engine.compute(together.select([index])) for index in range(len(batch))]
        for logits, expected, *alone in zip(
            engine.compute(together), exact.compute(together), *lone, strict=True
        ):
            assert logits is not None
            assert expected is not None
            rounding = ROUNDING * np.abs(expected).max()
            np.testing.assert_allclose(logits, expected, atol=rounding)
            np.testing.assert_allclose(logits, np.concatenate(alone), atol=rounding)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_holds_and_is_packed(precision: str, folder: Path) -> None:
    assert build_engine(folder, precision=precision).packed


def test_single_precision_is_padded_and_close(folder: Path, exact: TorchEngine) -> None:
    cuda_engine = build_engine(folder, precision="fp32")
    cuda_engine.reserve(TOKENS, ITEMS)
    assert not cuda_engine.packed
    for batch in batches():
        expected = exact.compute(TokenBatch.of_ids(batch, pad_id(folder))).logits
        np.testing.assert_allclose(
            cuda_engine.compute(TokenBatch.of_ids(batch, pad_id(folder))).logits,
            expected,
            atol=1e-3,
        )


def test_nothing_is_allocated_for_a_caller(engine: CudaEngine, folder: Path) -> None:
    def allocations() -> int:
        torch.cuda.synchronize()
        return int(torch.cuda.memory_stats()["allocation.all.allocated"])

    before = allocations()
    for batch in batches():
        engine.compute(TokenBatch.of_ids(batch, pad_id(folder)))
    assert allocations() == before


def test_lanes_answer_their_own(engine: CudaEngine, folder: Path) -> None:
    mixed_batches = [*batches()]
    expected = [
        engine.compute(TokenBatch.of_ids(batch, pad_id(folder))).logits for batch in mixed_batches
    ]
    results: dict[int, Any] = {}

    def lane(first: int) -> None:
        for index in range(first, len(mixed_batches), 2):
            results[index] = engine.compute(
                TokenBatch.of_ids(mixed_batches[index], pad_id(folder))
            ).logits

    threads = [threading.Thread(target=lane, args=(first,)) for first in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, logits in enumerate(expected):
        np.testing.assert_array_equal(results[index], logits)


def test_memory_that_lacks_is_reported_before_ready(folder: Path) -> None:
    cuda_engine = build_engine(folder)
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(free - (64 << 20), dtype=torch.uint8, device="cuda")
    try:
        with pytest.raises(OutOfMemory):
            cuda_engine.reserve(4_000_000, ITEMS)
    finally:
        del held
        torch.cuda.empty_cache()
