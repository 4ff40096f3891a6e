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


class Made:
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
def exact(tiny_classifier: Path) -> TorchEngine:
    return TorchEngine(tiny_classifier, RunnerSettings(device="cpu", threads=1))


@pytest.fixture
def packed(tiny_classifier: Path) -> CudaEngine:
    made = Made(tiny_classifier).engine
    made.reserve(TOKENS, ITEMS)
    return made


@pytest.fixture
def logs() -> Iterator[list[EventDict]]:
    with capture_logs() as found:
        yield found


def batches() -> Iterator[list[list[int]]]:
    """Yield batches of all sizes within the bounds, of texts of mixed lengths."""
    for size in (1, 2, 3, 5, 8, 16):
        for first in range(0, 50, 9):
            batch = [TEXTS[(first + 11 * step) % 50] for step in range(size)]
            while sum(map(len, batch)) > TOKENS:
                batch.pop()
            yield batch


def agree(computed: Computed, wanted: Computed, rounding: float) -> None:
    """Compare logits and embeddings, which both must have; ``rounding`` is of the largest."""
    for found, expected in zip(computed, wanted, strict=True):
        assert found is not None
        assert expected is not None
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=rounding * np.abs(expected).max())


def test_packed_in_half_precision_answers_as_torch_does(
    packed: CudaEngine, exact: TorchEngine
) -> None:
    assert packed.packed
    for batch in batches():
        agree(
            packed.compute(TokenBatch.of_ids(batch, 0)),
            exact.compute(TokenBatch.of_ids(batch, 0)),
            ROUNDING,
        )


def test_an_answer_depends_on_no_other_batch(packed: CudaEngine) -> None:
    alone = packed.compute(TokenBatch.of_ids(TEXTS[20:21], 0)).logits
    for batch in batches():
        packed.compute(TokenBatch.of_ids(batch, 0))
    np.testing.assert_array_equal(packed.compute(TokenBatch.of_ids(TEXTS[20:21], 0)).logits, alone)
    first = packed.compute(TokenBatch.of_ids(TEXTS[5:7], 0)).logits
    kept = first.copy()
    packed.compute(TokenBatch.of_ids(TEXTS[30:32], 0))
    np.testing.assert_array_equal(first, kept)


def test_nothing_is_captured_for_a_caller(tiny_classifier: Path) -> None:
    made = Made(tiny_classifier)
    made.engine.reserve(TOKENS, ITEMS)
    before = [stream.captured for stream in made.streams]
    assert len(before) == made.engine.lanes == 2
    for batch in batches():
        made.engine.compute(TokenBatch.of_ids(batch, 0))
    assert [stream.captured for stream in made.streams] == before


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precision_is_as_asked_for(
    precision: Literal["bf16", "fp16"], tiny_classifier: Path, logs: list[EventDict]
) -> None:
    Made(tiny_classifier, precision)
    (told,) = [log for log in logs if log["event"] == "half_precision_holds"]
    assert (told["precision"], told["packed"], told["texts"]) == (precision, True, 4)
    assert 0 < told["max_difference"] < 0.05


@pytest.mark.parametrize(("precision", "samples"), [("fp32", SAMPLES), ("auto", None)])
def test_single_precision_is_padded_and_exact(
    precision: Literal["fp32", "auto"],
    samples: TokenBatch | None,
    tiny_classifier: Path,
    exact: TorchEngine,
) -> None:
    engine = Made(tiny_classifier, precision, samples).engine
    engine.reserve(TOKENS, ITEMS)
    assert not engine.packed
    for batch in batches():
        agree(
            engine.compute(TokenBatch.of_ids(batch, 0)),
            exact.compute(TokenBatch.of_ids(batch, 0)),
            1e-5,
        )


def test_half_precision_that_answers_otherwise_is_refused(
    tiny_classifier: Path,
    exact: TorchEngine,
    monkeypatch: pytest.MonkeyPatch,
    logs: list[EventDict],
) -> None:
    # No difference is below this.
    monkeypatch.setattr("runners.engines.precision.TOLERANCE", -1.0)
    engine = Made(tiny_classifier).engine
    engine.reserve(TOKENS, ITEMS)
    assert not engine.packed
    np.testing.assert_allclose(
        engine.compute(TokenBatch.of_ids(TEXTS[:3], 0)).logits,
        exact.compute(TokenBatch.of_ids(TEXTS[:3], 0)).logits,
        atol=1e-5,
    )
    assert [log["event"] for log in logs] == ["half_precision_refused"]


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_memory_that_lacks_for_the_largest_batch_is_told_before_ready(
    precision: Literal["auto", "fp32"], tiny_classifier: Path
) -> None:
    made = Made(tiny_classifier, precision)
    made.streams[1].short_of_memory = True
    with pytest.raises(OutOfMemory):
        made.engine.reserve(TOKENS, ITEMS)


def test_memory_that_lacks_for_a_batch_costs_that_batch_alone(tiny_classifier: Path) -> None:
    made = Made(tiny_classifier)
    made.engine.reserve(TOKENS, ITEMS)
    for stream in made.streams:
        stream.short_of_memory = True
    # More often than there are lanes.
    for _ in range(5):
        with pytest.raises(OutOfMemory):
            made.engine.compute(TokenBatch.of_ids(TEXTS[:2], 0))
    for stream in made.streams:
        stream.short_of_memory = False
    assert made.engine.compute(TokenBatch.of_ids(TEXTS[:2], 0)).logits.shape == (2, 3)


def test_lanes_compute_at_once_and_each_answers_its_own(packed: CudaEngine) -> None:
    expected = {
        index: packed.compute(TokenBatch.of_ids(TEXTS[index : index + 2], 0)).logits
        for index in range(0, 40, 2)
    }
    together, found = threading.Barrier(2), dict[int, Any]()

    def lane(indices: range) -> None:
        for index in indices:
            together.wait(10)
            found[index] = packed.compute(TokenBatch.of_ids(TEXTS[index : index + 2], 0)).logits

    threads = [threading.Thread(target=lane, args=(range(at, 40, 4),)) for at in (0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.keys() == expected.keys()
    for index, logits in expected.items():
        np.testing.assert_array_equal(found[index], logits)
