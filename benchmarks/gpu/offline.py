"""What the device does without HTTP, packed and padded, and whether half precision agrees."""

import gc
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch
from numpy.typing import NDArray

from kaiten.settings.models import RunnerSettings
from runners.engines.base import Computed, Engine, TokenBatch
from runners.engines.cuda_engine import DTYPES, CudaEngine, CudaStream, PaddedLane
from runners.engines.precision import parity
from runners.engines.torch_engine import TorchEngine, load_network

Ids = Sequence[Sequence[int]]
_WARM_S = 0.5
_PARITY_BATCH = 256


def load_engine(folder: Path, settings: RunnerSettings, samples: TokenBatch) -> Engine:
    """Return the engine that serves on this device, ready for its largest batches."""
    if settings.device == "cpu":
        return TorchEngine(folder, settings)
    engine = CudaEngine(folder, settings, samples)
    engine.reserve(engine.batch_tokens, engine.batch_items)
    return engine


class PaddedHalf:
    """What packing is held against: the same network and precision, and batches that are padded."""

    lanes = CudaEngine.lanes
    batch_tokens = CudaEngine.batch_tokens
    batch_items = CudaEngine.batch_items
    packed = False
    express = False

    def __init__(self, folder: Path, settings: RunnerSettings) -> None:
        device = torch.device(settings.device)
        streams = [CudaStream(device) for _ in range(self.lanes)]
        network = load_network(folder).to(device).to(DTYPES[streams[0].half])
        self._lanes: SimpleQueue[PaddedLane] = SimpleQueue()
        for stream in streams:
            self._lanes.put(PaddedLane(network, stream))

    def reserve(self, tokens: int, items: int) -> None:
        """Reserve nothing."""

    @torch.inference_mode()
    def compute(self, batch: TokenBatch, *, alone: bool = False) -> Computed:
        """Return the logits and embeddings of a batch."""
        lane = self._lanes.get()
        try:
            return lane.compute(batch)
        finally:
            self._lanes.put(lane)


def rate(
    engine: Engine, texts: Ids, pad_id: int, size: int, seconds: float, *, by_length: bool = True
) -> dict[str, float]:
    """Return tokens/s and texts/s over batches of ``size`` texts, from every lane at once.

    Tokenising is left out. Where padding is computed, ``by_length`` sorts all texts first, better
    than any queue can; else they come as they are. Tokens are those of the texts, whatever is
    computed.
    """
    ordered = sorted(texts, key=len) if by_length and not engine.packed else list(texts)
    batches = _batches(ordered, size, engine.batch_tokens if engine.packed else None)
    _compute(engine, batches, pad_id, _WARM_S)
    done, spent = _compute(engine, batches, pad_id, seconds)
    tokens = sum(sum(map(len, batch)) for batch in done)
    return {"tokens_s": tokens / spent, "texts_s": sum(map(len, done)) / spent}


def _batches(texts: Ids, size: int, most_tokens: int | None) -> list[Ids]:
    """Cut texts into batches of a size, each a little smaller where its tokens would not fit."""
    batches: list[list[Sequence[int]]] = [[]]
    tokens = 0
    for text in texts:
        tokens += len(text)
        if len(batches[-1]) == size or (most_tokens is not None and tokens > most_tokens):
            batches.append([])
            tokens = len(text)
        batches[-1].append(text)
    # The last is a rest, unless there is no other.
    return [*batches[:-1]] or [*batches]


def _compute(
    engine: Engine, batches: Sequence[Ids], pad_id: int, seconds: float
) -> tuple[list[Ids], float]:
    """Compute batches for so long; return those that were, and the seconds that it took."""
    done: list[Ids] = []
    start = time.perf_counter()

    def lane(number: int) -> None:
        lane_batches = islice(cycle(batches), number, None, engine.lanes)
        while time.perf_counter() - start < seconds:
            batch = next(lane_batches)
            engine.compute(TokenBatch.of_ids(batch, pad_id))
            done.append(batch)

    with ThreadPoolExecutor(engine.lanes) as threads:
        for job in [threads.submit(lane, number) for number in range(engine.lanes)]:
            job.result()
    return done, time.perf_counter() - start


def same_labels(exact: Engine, half: Engine, texts: Ids, pad_id: int) -> dict[str, float]:
    """Compare the answers of two engines: the share of equal labels, and the largest difference."""
    logits = [answers(engine, texts, pad_id) for engine in (exact, half)]
    equal = float((logits[0].argmax(1) == logits[1].argmax(1)).mean())
    comparison = parity(*logits)
    return {"texts": len(texts), "equal_labels": equal, "max_difference": comparison.max_difference}


def answers(engine: Engine, texts: Ids, pad_id: int) -> NDArray[np.float32]:
    """Return the logits of all texts, in order, shape (texts, labels)."""
    starts = range(0, len(texts), _PARITY_BATCH)
    batches = (texts[at : at + _PARITY_BATCH] for at in starts)
    return np.concatenate(
        [engine.compute(TokenBatch.of_ids(batch, pad_id)).logits for batch in batches]
    )


def free_memory() -> int:
    """Return the bytes that are free on the device now."""
    gc.collect()
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info()[0])
