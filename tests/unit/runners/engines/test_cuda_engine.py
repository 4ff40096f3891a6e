"""The engine's own logic on a CPU: a stream without a device, whose graphs compute again."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from structlog.typing import EventDict

from kaiten.errors import OutOfMemory
from kaiten.settings.models import RunnerSettings
from runners.engines.base import Computed, TokenBatch
from runners.engines.cuda_engine import CudaEngine
from runners.engines.torch_engine import TorchEngine

CPU = torch.device("cpu")
# Of every length, from one word to the longest; the first two words tell them apart.
TEXTS = [
    [2, 5 + length % 50, 60 - 1 - length % 7, *range(5, 5 + length), 3] for length in range(50)
]
SAMPLES = TokenBatch.of_ids(
    [[2, 7, 3], [2, 9, 11, 12, 3], [2, *range(5, 55), 3], [2, *[6] * 62, 3]], 0
)
TOKENS, ITEMS = 256, 16
# What bfloat16 does to a logit of a network as small as this.
ROUNDING = 0.05


class HostStream:
    """Counts what it is asked for; runs out of memory at the call that a test names."""

    half = "bf16"

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.captured = 0
        self.short_of_memory = False

    def follow(self) -> None:
        pass

    def ordered(self) -> AbstractContextManager[Any]:
        if self.short_of_memory:
            raise torch.OutOfMemoryError
        return nullcontext()

    def staging(self, *size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(size, dtype=dtype)

    def capture(
        self, compute: Callable[[], torch.Tensor]
    ) -> tuple[Callable[[], None], torch.Tensor]:
        self.captured += 1
        result = compute().clone()

        def replay() -> None:
            result.copy_(compute())

        return replay, result

    def wait(self) -> None:
        pass


class EngineHarness:
    """An engine, and the streams of its lanes."""

    def __init__(
        self,
        folder: Path,
        precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
        samples: TokenBatch | None = SAMPLES,
    ) -> None:
        self.streams: list[HostStream] = []

        def stream(device: torch.device) -> HostStream:
            self.streams.append(HostStream(device))
            return self.streams[-1]

        settings = RunnerSettings(device="cpu", precision=precision)
        self.engine = CudaEngine(folder, settings, samples, stream)


@pytest.fixture(scope="module")
def exact_engine(tiny_classifier: Path) -> TorchEngine:
    return TorchEngine(tiny_classifier, RunnerSettings(device="cpu", threads=1))


@pytest.fixture
def packed_engine(tiny_classifier: Path) -> CudaEngine:
    engine = EngineHarness(tiny_classifier).engine
    engine.reserve(TOKENS, ITEMS)
    return engine


@pytest.fixture
def logs() -> Iterator[list[EventDict]]:
    with capture_logs() as captured:
        yield captured


def batches() -> Iterator[list[list[int]]]:
    """Yield batches of all sizes within the bounds, of texts of mixed lengths."""
    for size in (1, 2, 3, 5, 8, 16):
        for first in range(0, 50, 9):
            batch = [TEXTS[(first + 11 * step) % 50] for step in range(size)]
            while sum(map(len, batch)) > TOKENS:
                batch.pop()
            yield batch


def assert_agree(computed: Computed, reference: Computed, rounding: float) -> None:
    """Compare logits and embeddings, which both must have; ``rounding`` is of the largest."""
    for actual, expected in zip(computed, reference, strict=True):
        assert actual is not None
        assert expected is not None
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, expected, atol=rounding * np.abs(expected).max())


def test_packed_in_half_precision_answers_as_torch_does(
    packed_engine: CudaEngine, exact_engine: TorchEngine
) -> None:
    assert packed_engine.packed
    for batch in batches():
        assert_agree(
            packed_engine.compute(TokenBatch.of_ids(batch, 0)),
            exact_engine.compute(TokenBatch.of_ids(batch, 0)),
            ROUNDING,
        )


def test_an_answer_depends_on_no_other_batch(packed_engine: CudaEngine) -> None:
    alone = packed_engine.compute(TokenBatch.of_ids(TEXTS[20:21], 0)).logits
    for batch in batches():
        packed_engine.compute(TokenBatch.of_ids(batch, 0))
    np.testing.assert_array_equal(
        packed_engine.compute(TokenBatch.of_ids(TEXTS[20:21], 0)).logits, alone
    )
    first = packed_engine.compute(TokenBatch.of_ids(TEXTS[5:7], 0)).logits
    first_copy = first.copy()
    packed_engine.compute(TokenBatch.of_ids(TEXTS[30:32], 0))
    np.testing.assert_array_equal(first, first_copy)


def test_nothing_is_captured_for_a_caller(tiny_classifier: Path) -> None:
    harness = EngineHarness(tiny_classifier)
    harness.engine.reserve(TOKENS, ITEMS)
    before = [stream.captured for stream in harness.streams]
    assert len(before) == harness.engine.lanes == 2
    for batch in batches():
        harness.engine.compute(TokenBatch.of_ids(batch, 0))
    assert [stream.captured for stream in harness.streams] == before


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precision_is_as_asked_for(
    precision: Literal["bf16", "fp16"], tiny_classifier: Path, logs: list[EventDict]
) -> None:
    EngineHarness(tiny_classifier, precision)
    (entry,) = [log for log in logs if log["event"] == "half_precision_holds"]
    assert (entry["precision"], entry["packed"], entry["texts"]) == (precision, True, 4)
    assert 0 < entry["max_difference"] < 0.05


@pytest.mark.parametrize(("precision", "samples"), [("fp32", SAMPLES), ("auto", None)])
def test_single_precision_is_padded_and_exact(
    precision: Literal["fp32", "auto"],
    samples: TokenBatch | None,
    tiny_classifier: Path,
    exact_engine: TorchEngine,
) -> None:
    engine = EngineHarness(tiny_classifier, precision, samples).engine
    engine.reserve(TOKENS, ITEMS)
    assert not engine.packed
    for batch in batches():
        assert_agree(
            engine.compute(TokenBatch.of_ids(batch, 0)),
            exact_engine.compute(TokenBatch.of_ids(batch, 0)),
            1e-5,
        )


def test_half_precision_that_answers_otherwise_is_refused(
    tiny_classifier: Path,
    exact_engine: TorchEngine,
    monkeypatch: pytest.MonkeyPatch,
    logs: list[EventDict],
) -> None:
    # No difference is below this.
    monkeypatch.setattr("runners.engines.precision.TOLERANCE", -1.0)
    engine = EngineHarness(tiny_classifier).engine
    engine.reserve(TOKENS, ITEMS)
    assert not engine.packed
    np.testing.assert_allclose(
        engine.compute(TokenBatch.of_ids(TEXTS[:3], 0)).logits,
        exact_engine.compute(TokenBatch.of_ids(TEXTS[:3], 0)).logits,
        atol=1e-5,
    )
    assert [log["event"] for log in logs] == ["half_precision_refused"]


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_memory_that_lacks_for_the_largest_batch_is_reported_before_ready(
    precision: Literal["auto", "fp32"], tiny_classifier: Path
) -> None:
    harness = EngineHarness(tiny_classifier, precision)
    harness.streams[1].short_of_memory = True
    with pytest.raises(OutOfMemory):
        harness.engine.reserve(TOKENS, ITEMS)


def test_memory_that_lacks_for_a_batch_costs_that_batch_alone(tiny_classifier: Path) -> None:
    harness = EngineHarness(tiny_classifier)
    harness.engine.reserve(TOKENS, ITEMS)
    for stream in harness.streams:
        stream.short_of_memory = True
    # More often than there are lanes.
    for _ in range(5):
        with pytest.raises(OutOfMemory):
            harness.engine.compute(TokenBatch.of_ids(TEXTS[:2], 0))
    for stream in harness.streams:
        stream.short_of_memory = False
    assert harness.engine.compute(TokenBatch.of_ids(TEXTS[:2], 0)).logits.shape == (2, 3)


def test_lanes_compute_at_once_and_each_answers_its_own(packed_engine: CudaEngine) -> None:
    expected = {
        index: packed_engine.compute(TokenBatch.of_ids(TEXTS[index : index + 2], 0)).logits
        for index in range(0, 40, 2)
    }
    together, results = threading.Barrier(2), dict[int, Any]()

    def lane(indices: range) -> None:
        for index in indices:
            together.wait(10)
            results[index] = packed_engine.compute(
                TokenBatch.of_ids(TEXTS[index : index + 2], 0)
            ).logits

    threads = [threading.Thread(target=lane, args=(range(at, 40, 4),)) for at in (0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.keys() == expected.keys()
    for index, logits in expected.items():
        np.testing.assert_array_equal(results[index], logits)
