"""A runner: one version with its queue and its engine, from inputs to predictions."""

import asyncio
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import structlog

from kaiten.context import current_or_none
from kaiten.settings.models import BatchingSettings
from runners.batching.batcher import Batcher, Device
from runners.batching.observer import Observer
from runners.batching.preparation import Preparation, run_on
from runners.batching.watchdog import DeviceHung, Watchdog
from runners.tasks.base import Task

logger = structlog.get_logger(__name__)
# A warm-up compiles, captures graphs and computes the largest batches: it may take so many times as
# long as a batch.
_WARM_UP_FACTOR = 10


class Runner:
    """Predicts with one version in this process; ``on_death`` is called if it dies.

    ``hung`` says, once it is closed, whether one of its threads hangs.
    """

    def __init__(
        self,
        model_tag: str,
        labels: Sequence[str],
        task: Task[Any, Any, Any, Any],
        settings: BatchingSettings,
        observer: Observer,
        on_death: Callable[[], None],
    ) -> None:
        self.model_tag = model_tag
        self.labels = tuple(labels)
        self._processor, self._model = task.processor, task.model
        self._settings = settings
        self._on_death = on_death
        self._warm = self._closed = False
        # One permanent thread a lane, because torch keeps a pool for each thread that calls it.
        self._lane_threads = ThreadPoolExecutor(
            self._model.lanes, thread_name_prefix=f"lane-{model_tag}"
        )
        # Its own thread: lanes are slower if their work moves between more threads than lanes.
        self._express_thread = ThreadPoolExecutor(1, thread_name_prefix=f"express-lane-{model_tag}")
        self._observer = observer
        watchdog = Watchdog(settings.hang_timeout_s)
        self._preparation = Preparation(task.processor, model_tag, watchdog)
        self._batcher: Batcher[Any, Any, Any] = Batcher(
            self._preparation.prepare,
            self._build_device(watchdog),
            settings,
            observer,
            on_death=on_death,
        )
        self.hung = False

    def _build_device(self, watchdog: Watchdog) -> Device[Any, Any]:
        model = self._model
        return Device(
            partial(self._compute, self._lane_threads),
            model.lanes,
            model.batch_tokens,
            model.batch_items,
            packed=model.packed,
            express=partial(self._compute, self._express_thread) if model.express else None,
            check=self._check,
            watchdog=watchdog,
        )

    @property
    def ready(self) -> bool:
        """Whether the model is warmed up and its batcher alive."""
        return self._warm and self._batcher.alive

    @property
    def queue_delay_s(self) -> int:
        """The time for all waiting items at the measured throughput, in seconds, at least 1."""
        return self._batcher.queue_delay_s

    def retry_after_s(
        self, subject: str, inputs: int, deadline: float, ahead: int = 0
    ) -> int | None:
        """Return after how many seconds to retry if these inputs would be rejected now.

        Returns None if there is room for them. ``ahead`` is the number of the subject's inputs that
        will be submitted before them.
        """
        return self._batcher.retry_after_s(subject, inputs, deadline, ahead)

    async def start(self) -> None:
        """Warm up the model and start its batcher; the runner dies if that fails."""
        try:
            timeout_s = self._settings.hang_timeout_s
            watchdog = Watchdog(timeout_s and _WARM_UP_FACTOR * timeout_s)
            await watchdog.guard(run_on(self._lane_threads, self._warm_up))
        except Exception as error:
            if isinstance(error, DeviceHung):
                self.hung = True
                self._observer.device_hung()
                logger.critical("device_hung", model=self.model_tag, reason=str(error))
            else:
                logger.critical("warm_up_failed", model=self.model_tag, exc_info=True)
            if not self._closed:
                self._on_death()
            return
        if not self._closed:
            self._batcher.start()
            self._warm = True

    async def predict(self, inputs: Sequence[Any], deadline: float = math.inf) -> Sequence[Any]:
        """Return the task's prediction for each input, in order.

        ``deadline`` is by time.monotonic(). The subject is that of the request in the context.

        Raises:
            QueueFull: The queue has no room for all inputs.
            DeadlineExceeded: Some input had not started by the deadline.
            InferenceFailed: Some input failed.
            NotReady: The runner is not ready.

        """
        context = current_or_none()
        if context is None:
            return await self._batcher.submit(inputs, deadline)
        return await self._batcher.submit(inputs, deadline, context.subject, context.reserve)

    async def close(self) -> None:
        """Stop the batcher and the threads; waiting calls raise NotReady."""
        self._closed = True
        await self._batcher.close()
        self.hung = self.hung or self._batcher.hung
        # Waiting for a hung thread would never end.
        await self._preparation.close(wait=not self.hung)
        for threads in (self._lane_threads, self._express_thread):
            await asyncio.to_thread(partial(threads.shutdown, wait=not self.hung))

    def _warm_up(self) -> None:
        self._model.warm_up(
            self._settings.max_batch_tokens or self._model.batch_tokens,
            self._settings.max_batch_items or self._model.batch_items,
        )

    async def _check(self) -> None:
        await run_on(self._lane_threads, self._model.check)

    async def _compute(
        self, threads: ThreadPoolExecutor, batch: Sequence[Any], *, alone: bool
    ) -> Sequence[Any]:
        raw = await run_on(threads, partial(self._model.infer, batch, alone=alone))
        return self._processor.finish(batch, raw)
