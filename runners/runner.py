"""A runner: one model, its queue and its device, from inputs to predictions."""

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
# A warm-up compiles, captures graphs and computes the largest batches, all before the first answer.
_WARM_UP_TIMES = 10


class Runner:
    """Predicts with one version of a model."""

    def __init__(
        self,
        tag: str,
        labels: Sequence[str],
        task: Task[Any, Any, Any, Any],
        limits: BatchingSettings,
        observer: Observer,
        on_death: Callable[[], None],
    ) -> None:
        self.tag = tag
        self.labels = tuple(labels)
        self._processor, self._model = task.processor, task.model
        self._limits = limits
        self._on_death = on_death
        self._warm = self._closed = False
        # One lasting thread a lane, since torch keeps a pool for each thread that calls it.
        self._lane_threads = ThreadPoolExecutor(self._model.lanes, thread_name_prefix=f"lane-{tag}")
        # Not one more lane thread: work that changes between more threads than lanes is slower.
        self._express_thread = ThreadPoolExecutor(1, thread_name_prefix=f"express-lane-{tag}")
        self._observer = observer
        watchdog = Watchdog(limits.hang_timeout_s)
        self._preparation = Preparation(task.processor, tag, watchdog)
        self._batcher: Batcher[Any, Any, Any] = Batcher(
            self._preparation.prepare,
            Device(
                partial(self._compute, self._lane_threads),
                self._model.lanes,
                self._model.batch_tokens,
                self._model.batch_items,
                packed=self._model.packed,
                express=partial(self._compute, self._express_thread)
                if self._model.express
                else None,
                check=self._check,
                watchdog=watchdog,
            ),
            limits,
            observer,
            on_death=on_death,
        )
        # Whether a thread of it hangs, once it is closed: then the process does not end by itself.
        self.hung = False

    @property
    def ready(self) -> bool:
        """Whether the model is warm and its batcher alive."""
        return self._warm and self._batcher.alive

    @property
    def queue_delay_s(self) -> int:
        """What all that waits takes at the measured pace, in whole seconds, at least 1."""
        return self._batcher.queue_delay_s

    def retry_after_s(
        self, subject: str, inputs: int, deadline: float, ahead: int = 0
    ) -> int | None:
        """Return when to retry, in seconds, if so many inputs of a subject would be refused now.

        ``ahead``: the inputs of the subject that are to be submitted before them.
        """
        return self._batcher.retry_after_s(subject, inputs, deadline, ahead)

    async def start(self) -> None:
        """Warm the model up and start its batcher; a runner that fails at it is dead."""
        try:
            timeout_s = self._limits.hang_timeout_s
            watchdog = Watchdog(timeout_s and _WARM_UP_TIMES * timeout_s)
            await watchdog.guard(run_on(self._lane_threads, self._warm_up))
        except Exception as error:
            if isinstance(error, DeviceHung):
                self.hung = True
                self._observer.device_hung()
                logger.critical("device_hung", model=self.tag, reason=str(error))
            else:
                logger.critical("warm_up_failed", model=self.tag, exc_info=True)
            if not self._closed:
                self._on_death()
            return
        if not self._closed:
            self._batcher.start()
            self._warm = True

    async def predict(self, inputs: Sequence[Any], deadline: float = math.inf) -> Sequence[Any]:
        """Return the task's prediction for each input, in order; ``deadline`` in monotonic time.

        The queue is shared between the subjects of the requests at hand. QueueFull,
        DeadlineExceeded, NotReady and InferenceFailed as the batcher raises them.
        """
        context = current_or_none()
        if context is None:
            return await self._batcher.submit(inputs, deadline)
        return await self._batcher.submit(inputs, deadline, context.subject, context.reserve)

    async def close(self) -> None:
        """Stop the batcher and the threads; what waits is answered with NotReady."""
        self._closed = True
        await self._batcher.close()
        self.hung = self.hung or self._batcher.hung
        # A thread that hangs would be waited for without end.
        await self._preparation.close(wait=not self.hung)
        for threads in (self._lane_threads, self._express_thread):
            await asyncio.to_thread(partial(threads.shutdown, wait=not self.hung))

    def _warm_up(self) -> None:
        self._model.warm_up(
            self._limits.max_batch_tokens or self._model.batch_tokens,
            self._limits.max_batch_items or self._model.batch_items,
        )

    async def _check(self) -> None:
        await run_on(self._lane_threads, self._model.check)

    async def _compute(
        self, threads: ThreadPoolExecutor, batch: Sequence[Any], *, alone: bool
    ) -> Sequence[Any]:
        raw = await run_on(threads, partial(self._model.infer, batch, alone=alone))
        return self._processor.finish(batch, raw)
