"""A runner: one model, its queue and its device, from inputs to predictions."""

import asyncio
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import structlog

from kaiten.settings import Batching
from runners.batcher import Batcher, Device
from runners.observer import Observer
from runners.tasks.base import Task

logger = structlog.get_logger(__name__)
_INLINE_CHARS = 512
ResultT = TypeVar("ResultT")


class Runner:
    """Predicts with one version of a model."""

    def __init__(
        self,
        tag: str,
        labels: Sequence[str],
        task: Task[Any, Any, Any],
        limits: Batching,
        observer: Observer,
        on_death: Callable[[], None],
    ) -> None:
        self.tag = tag
        self.labels = tuple(labels)
        self._task = task
        self._limits = limits
        self._on_death = on_death
        self._warm = self._closed = False
        # One lasting thread a lane, since torch keeps a pool for each thread that calls it.
        self._lane_threads = ThreadPoolExecutor(task.lanes, thread_name_prefix=f"lane-{tag}")
        self._cpu_thread = ThreadPoolExecutor(1, thread_name_prefix=f"prepare-{tag}")
        self._batcher: Batcher[str, Any, Any] = Batcher(
            self._prepare,
            Device(
                self._compute,
                task.lanes,
                task.batch_tokens,
                task.batch_items,
                packed=task.packed,
                check=self._check,
            ),
            limits,
            observer,
            on_death=on_death,
        )

    @property
    def ready(self) -> bool:
        """Whether the model is warm and its batcher alive."""
        return self._warm and self._batcher.alive

    @property
    def drain_seconds(self) -> int:
        """What all that waits takes at the measured pace, in whole seconds, at least 1."""
        return self._batcher.drain_seconds

    async def start(self) -> None:
        """Warm the model up and start its batcher; a runner that fails at it is dead."""
        try:
            await _run_on(self._lane_threads, self._warm_up)
        except Exception:
            logger.critical("warm_up_failed", model=self.tag, exc_info=True)
            if not self._closed:
                self._on_death()
            return
        if not self._closed:
            self._batcher.start()
            self._warm = True

    async def predict(self, inputs: Sequence[str], deadline: float = math.inf) -> Sequence[Any]:
        """Return the task's prediction for each input, in order; ``deadline`` in monotonic time.

        QueueFull, DeadlineExceeded, NotReady and InferenceFailed as the batcher raises them.
        """
        return await self._batcher.submit(inputs, deadline)

    async def close(self) -> None:
        """Stop the batcher and the threads; what waits is answered with NotReady."""
        self._closed = True
        await self._batcher.close()
        for threads in (self._lane_threads, self._cpu_thread):
            await asyncio.to_thread(threads.shutdown)

    def _warm_up(self) -> None:
        self._task.warm_up(
            self._limits.max_batch_tokens or self._task.batch_tokens,
            self._limits.max_batch_size or self._task.batch_items,
        )

    async def _prepare(self, inputs: Sequence[str]) -> Sequence[Any]:
        # A thread's two switches cost more than a few short texts.
        if sum(map(len, inputs)) <= _INLINE_CHARS:
            return self._task.prepare(inputs)
        job = self._cpu_thread.submit(_carriable, partial(self._task.prepare, inputs))
        prepared = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(prepared)
        except asyncio.CancelledError:
            # A thread can not be told to stop: until it has, the caller's room is not given back.
            if not job.cancel():
                await asyncio.wait([prepared])
            raise

    async def _check(self) -> None:
        await _run_on(self._lane_threads, self._task.check)

    async def _compute(self, batch: Sequence[Any], *, alone: bool) -> Sequence[Any]:
        raw = await _run_on(self._lane_threads, partial(self._task.infer, batch, alone=alone))
        return self._task.finish(batch, raw)


async def _run_on(threads: ThreadPoolExecutor, call: Callable[[], ResultT]) -> ResultT:
    return await asyncio.get_running_loop().run_in_executor(threads, _carriable, call)


def _carriable(call: Callable[[], ResultT]) -> ResultT:
    """Call; no future can carry a StopIteration, and whoever awaits it would wait for ever."""
    try:
        return call()
    except StopIteration as error:
        raise RuntimeError("StopIteration") from error
