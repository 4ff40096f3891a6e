"""A runner: one model, its queue and its device, from inputs to predictions."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog

from kaiten.settings import Batching
from runners.batcher import Batcher
from runners.observer import Observer
from runners.tasks.base import Task

logger = structlog.get_logger(__name__)


class Runner:
    """Predicts with one version of a model."""

    def __init__(
        self,
        tag: str,
        labels: Sequence[str],
        task: Task[Any, Any, Any],
        limits: Batching,
        observer: Observer,
    ) -> None:
        self.tag = tag
        self.labels = tuple(labels)
        self._task = task
        self._warm = self._closed = False
        # One lasting thread for the device, since torch keeps a pool for each thread that calls it.
        self._device_thread = ThreadPoolExecutor(1, thread_name_prefix=f"device-{tag}")
        self._cpu_thread = ThreadPoolExecutor(1, thread_name_prefix=f"prepare-{tag}")
        self._batcher: Batcher[str, Any, Any] = Batcher(
            self._prepare, self._compute, limits, observer
        )

    @property
    def ready(self) -> bool:
        """Whether the model is warm and its loop runs."""
        return self._warm and self._batcher.alive

    async def start(self) -> None:
        """Warm the model up and start its loop; if it fails, the runner never becomes ready."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._device_thread, self._task.warm_up)
        except Exception:
            logger.critical("warm_up_failed", model=self.tag, exc_info=True)
            return
        if not self._closed:
            self._batcher.start()
            self._warm = True

    async def predict(self, inputs: Sequence[str]) -> list[Any]:
        """Return the task's prediction for each input, in order.

        QueueFull, NotReady and InferenceFailed as the batcher raises them.
        """
        return await self._batcher.submit(inputs)

    async def close(self) -> None:
        """Stop the loop and the threads; what waits is answered with NotReady."""
        self._closed = True
        await self._batcher.close()
        for thread in (self._device_thread, self._cpu_thread):
            await asyncio.to_thread(thread.shutdown)

    async def _prepare(self, inputs: Sequence[str]) -> Sequence[Any]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._cpu_thread, self._task.prepare, inputs)

    async def _compute(self, batch: Sequence[Any]) -> Sequence[Any]:
        loop = asyncio.get_running_loop()
        raw = await loop.run_in_executor(self._device_thread, self._task.infer, batch)
        return self._task.finish(batch, raw)
