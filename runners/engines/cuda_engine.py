"""The CUDA engine: packed batches in half precision, replayed from graphs captured at warm-up.

A batch is one row of numbers in pinned memory. A lane copies it to the device, replays the graph of
the smallest shape with room for it, and copies the result back, all on its own stream: one lane's
copies and Python run while the other's batch computes. Nothing is compiled, captured or allocated
during a request.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from kaiten.errors import OutOfMemory
from kaiten.settings.models import RunnerSettings
from runners.engines import CUDA_LANES
from runners.engines.base import Computed, TokenBatch
from runners.engines.embedding import concat_embedding, split_embedding
from runners.engines.packed_network import PackedNetwork, is_packable
from runners.engines.packing import Grid, Shape, pack
from runners.engines.precision import parity
from runners.engines.torch_engine import load_network

logger = structlog.get_logger(__name__)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
Compute = Callable[[], torch.Tensor]


class Stream(Protocol):
    """A lane's own queue of work on a device."""

    @property
    def device(self) -> torch.device: ...

    def follow(self) -> None:
        """Start after all work that the device has in any queue."""

    def ordered(self) -> AbstractContextManager[Any]:
        """Return a context whose work goes into this queue."""

    @property
    def half(self) -> str:
        """The half precision that the device computes best: bf16 or fp16."""

    def staging(self, *size: int, dtype: torch.dtype) -> torch.Tensor:
        """Return host memory that the device accesses directly."""

    def capture(self, compute: Compute) -> tuple[Callable[[], None], torch.Tensor]:
        """Return a function that computes again in the same memory, and that of its result."""

    def wait(self) -> None:
        """Wait until the queue is empty."""


class CudaStream:
    """A stream of a CUDA device. Its graphs share memory, because one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        # Blocking, so that waiting does not keep a core busy.
        self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def follow(self) -> None:
        torch.cuda.synchronize(self.device)

    def ordered(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._stream)

    @property
    def half(self) -> str:
        # Since Ampere.
        return "bf16" if torch.cuda.get_device_capability(self.device) >= (8, 0) else "fp16"

    def staging(self, *size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(size, dtype=dtype, pin_memory=True)

    def capture(self, compute: Compute) -> tuple[Callable[[], None], torch.Tensor]:
        # The setup of a first run (handles, workspaces, kernels) cannot be captured.
        compute()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # torch.cuda.graph would collect garbage and empty the cache for each of many shapes.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            result = compute()
        finally:
            graph.capture_end()
        return graph.replay, result

    def wait(self) -> None:
        self._done.record(self._stream)
        self._done.synchronize()


class Lane(Protocol):
    """Computes one batch at a time."""

    def compute(self, batch: TokenBatch) -> Computed:
        """Return the logits and embeddings of a batch."""


class PackedLane:
    """Computes packed batches by graphs, one for each shape of a grid.

    ``longest`` is the most tokens of a text.
    """

    def __init__(self, network: PackedNetwork, stream: Stream, grid: Grid, longest: int) -> None:
        self._stream, self._grid, self._first = stream, grid, network.first_position
        size = grid.largest.size
        self._staged = stream.staging(size, dtype=torch.int32)
        self._row: NDArray[np.int32] = self._staged.numpy()
        self._batch = torch.zeros(size, dtype=torch.int32, device=stream.device)
        self._graphs: dict[Shape, tuple[Callable[[], None], torch.Tensor]] = {}
        stream.follow()
        with stream.ordered():
            for shape in grid:
                batch = self._batch[: shape.size]
                # Empty texts, in the memory of the largest batch of this shape.
                compute = partial(network, batch, shape, min(longest, shape.tokens))
                self._graphs[shape] = stream.capture(compute)
            stream.wait()
        self._labels, columns = network.num_labels, self._graphs[grid.largest][1].shape[1]
        self._answers = stream.staging(grid.largest.texts, columns, dtype=torch.float32)

    def compute(self, batch: TokenBatch) -> Computed:
        token_ids, count = batch.token_ids, len(batch)
        shape = self._grid.fit(sum(map(len, token_ids)), count)
        pack(token_ids, shape, self._first, self._row[: shape.size])
        replay, result = self._graphs[shape]
        with self._stream.ordered():
            self._batch[: shape.size].copy_(self._staged[: shape.size], non_blocking=True)
            replay()
            self._answers[:count].copy_(result[:count], non_blocking=True)
            self._stream.wait()
        # A copy, because the next batch overwrites the result.
        return split_embedding(self._answers[:count].numpy().copy(), self._labels)


class PaddedLane:
    """Computes padded batches of any shape."""

    def __init__(self, network: Any, stream: Stream) -> None:  # noqa: ANN401
        self._network, self._stream = network, stream
        stream.follow()

    def compute(self, batch: TokenBatch) -> Computed:
        arrays, device = batch.arrays(), self._stream.device
        with self._stream.ordered():
            output = self._network(
                **{name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
            )
            answer = concat_embedding(output.logits).cpu().numpy()
        return split_embedding(answer, self._network.config.num_labels)


class CudaEngine:
    """A classifier on a CUDA device, in half precision if that predicts as fp32 does.

    Batches are packed in half precision if the model's family supports it, and padded otherwise.
    """

    lanes = CUDA_LANES
    # Its batches take little time, and another lane's graphs would take much memory.
    express = False
    batch_tokens = 16_384
    batch_items = 1024

    def __init__(
        self,
        folder: Path,
        settings: RunnerSettings,
        samples: TokenBatch | None,
        stream: Callable[[torch.device], Stream] = CudaStream,
    ) -> None:
        device = torch.device(settings.device)
        self._streams = [stream(device) for _ in range(self.lanes)]
        self._samples = samples or TokenBatch.of_ids([[0]], 0)
        self._longest = max(map(len, self._samples.token_ids))
        self._lanes: SimpleQueue[Lane] = SimpleQueue()
        self._network, self.packed = load_network(folder).to(device), False
        precision = self._streams[0].half if settings.precision == "auto" else settings.precision
        if precision in DTYPES and samples is not None:
            self._try_half_precision(precision, samples)

    @torch.inference_mode()
    def reserve(self, tokens: int, items: int) -> None:
        """Capture all graphs of all lanes, or compute the largest batch in each.

        Raises:
            OutOfMemory: The device cannot hold that; lower the limits of a batch.

        """
        try:
            grid = Grid.up_to(max(tokens, self._longest), items)
            lanes = [self._build_lane(stream, grid) for stream in self._streams]
            if not self.packed:
                self._compute_largest(lanes, tokens, items)
        except torch.OutOfMemoryError:
            raise OutOfMemory from None
        for lane in lanes:
            self._lanes.put(lane)

    @torch.inference_mode()
    def compute(self, batch: TokenBatch, *, alone: bool = False) -> Computed:  # noqa: ARG002
        """Return the logits and embeddings of a batch.

        Raises:
            OutOfMemory: It does not fit into the device's memory.

        """
        lane = self._lanes.get()
        try:
            return lane.compute(batch)
        except torch.OutOfMemoryError:
            raise OutOfMemory from None
        finally:
            self._lanes.put(lane)

    def _build_lane(self, stream: Stream, grid: Grid) -> Lane:
        if not self.packed:
            return PaddedLane(self._network, stream)
        return PackedLane(self._network, stream, grid, self._longest)

    @torch.inference_mode()
    def _try_half_precision(self, precision: str, samples: TokenBatch) -> None:
        """Switch to half precision, packed if possible, if the predictions stay the same."""
        exact = PaddedLane(self._network, self._streams[0]).compute(samples)
        full, half = self._network, deepcopy(self._network).to(DTYPES[precision])
        self.packed = samples.is_plain and is_packable(half)
        self._network = PackedNetwork(half) if self.packed else half
        # A grid for these texts alone.
        grid = Grid([Shape(sum(map(len, samples.token_ids)), len(samples))])
        halved = self._build_lane(self._streams[0], grid).compute(samples)
        result = parity(exact.logits, halved.logits)
        facts = {"precision": precision, "packed": self.packed, **asdict(result)}
        if result.holds:
            logger.info("half_precision_holds", **facts)
        else:
            logger.warning("half_precision_refused", **facts)
            self._network, self.packed = full, False

    def _compute_largest(self, lanes: Sequence[Lane], tokens: int, items: int) -> None:
        index = max(range(len(self._samples)), key=lambda at: len(self._samples.token_ids[at]))
        longest = self._samples.select([index] * max(1, min(items, tokens // self._longest)))
        for lane in lanes:
            lane.compute(longest)
