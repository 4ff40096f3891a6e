"""Offline prediction: many texts at once, in batches like those of a running server."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kaiten.settings.models import BatchingSettings
from runners.batching.selection import BatchLimits, choose_batch
from runners.tasks.base import Task

_PROBE = "probe"


class OfflinePredictor:
    """Computes texts without a server, on the calling thread.

    ``embedding_width`` is that of the network's embeddings, 0 without any.
    """

    def __init__(self, task: Task[Any, Any, Any, Any], settings: BatchingSettings) -> None:
        self._task = task
        self._limits = BatchLimits(
            items=settings.max_batch_items or task.model.batch_items,
            tokens=settings.max_batch_tokens or task.model.batch_tokens,
            padding_ratio=settings.max_padding_ratio,
            packed=task.model.packed,
        )
        task.model.warm_up(self._limits.tokens, self._limits.items)
        probe = task.model.infer(task.processor.prepare([_PROBE]))
        self._labels = probe.logits.shape[1]
        self.embedding_width = 0 if probe.embeddings is None else probe.embeddings.shape[1]

    def predict(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the probabilities and embedding of each text: (texts, labels + width)."""
        items = self._task.processor.prepare(texts)
        predictions = np.empty((len(items), self._labels + self.embedding_width), np.float32)
        waiting = np.arange(len(items))
        while len(waiting):
            costs = [items[index].cost for index in waiting]
            selected = choose_batch(costs, [False] * len(costs), self._limits)
            batch = [items[index] for index in waiting[selected]]
            predictions[waiting[selected]] = self._predict_batch(batch)
            waiting = np.delete(waiting, selected)
        return predictions

    def _predict_batch(self, batch: Sequence[Any]) -> NDArray[np.float32]:
        raw = self._task.model.infer(batch, alone=True)
        scores = [prediction.scores for prediction in self._task.processor.finish(batch, raw)]
        return np.hstack([scores] if raw.embeddings is None else [scores, raw.embeddings])
