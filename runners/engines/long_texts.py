"""The engine of models with a long maximum: ONNX Runtime for short texts, torch for long ones.

An exported network holds all of a text's attention in memory, which is too much for long texts.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from kaiten.settings.models import RunnerSettings
from runners.engines.base import Computed, TokenBatch
from runners.engines.onnx_engine import OnnxEngine
from runners.engines.torch_engine import TorchEngine


class LongTextEngine:
    """Computes texts of up to ``max_onnx_tokens`` on ONNX Runtime, and longer ones on torch.

    A batch may mix both. All lanes share one torch thread, so a long text leaves the other lanes to
    the short ones.
    """

    batch_tokens = OnnxEngine.batch_tokens
    batch_items = OnnxEngine.batch_items
    packed = OnnxEngine.packed
    express = OnnxEngine.express

    def __init__(
        self,
        folder: Path,
        settings: RunnerSettings,
        samples: TokenBatch | None,
        max_onnx_tokens: int,
    ) -> None:
        # torch keeps a pool of workers for each thread that calls it.
        self._torch_thread = ThreadPoolExecutor(1, thread_name_prefix="long-texts")
        # Both are loaded at once: of a large model, each takes seconds.
        loading = self._torch_thread.submit(TorchEngine, folder, settings)
        self._short = OnnxEngine(folder, settings)
        self._long = loading.result()
        self._samples, self._max_onnx_tokens = samples, max_onnx_tokens

    @property
    def lanes(self) -> int:
        """How many batches it computes at once."""
        return self._short.lanes

    def reserve(self, tokens: int, items: int) -> None:  # noqa: ARG002  a CPU reserves nothing
        """Compute one text on torch, as its first computation takes longer."""
        if self._samples is not None:
            self._on_torch(self._samples.select([0]))

    def compute(self, batch: TokenBatch, *, alone: bool = False) -> Computed:
        """Return the logits and embeddings of a batch; may be called from every lane."""
        lengths = [len(ids) for ids in batch.token_ids]
        long = [index for index, length in enumerate(lengths) if length > self._max_onnx_tokens]
        if not long:
            return self._short.compute(batch, alone=alone)
        # One at a time: a batch would not be faster, and its padding would take memory.
        parts = [self._on_torch(batch.select([index])) for index in long]
        short = [index for index in range(len(batch)) if index not in set(long)]
        if short:
            parts.append(self._short.compute(batch.select(short), alone=alone))
        return _merge(parts, [*long, *short])

    def _on_torch(self, batch: TokenBatch) -> Computed:
        return self._torch_thread.submit(partial(self._long.compute, batch)).result()


def _merge(parts: Sequence[Computed], order: Sequence[int]) -> Computed:
    """Return the parts as one batch, sorted by each text's index in ``order``."""
    places = np.argsort(order)
    logits = np.concatenate([part.logits for part in parts])[places]
    embeddings = [part.embeddings for part in parts if part.embeddings is not None]
    if len(embeddings) < len(parts):
        return Computed(logits)
    return Computed(logits, np.concatenate(embeddings)[places])
