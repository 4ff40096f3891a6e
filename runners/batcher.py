"""The batcher: one queue before one device.

There is no timer. The loop takes what is queued as soon as the device is free, so an idle device
starts at once, and batches grow by themselves while it is busy.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import structlog

from kaiten.errors import InferenceFailed, NotReady, QueueFull
from kaiten.settings import Batching
from runners.observer import BatchReport, Observer

logger = structlog.get_logger(__name__)


class Costed(Protocol):
    """An item that knows what it costs the device, in tokens (or pixels, or rows)."""

    @property
    def cost(self) -> int: ...


InputT = TypeVar("InputT")
ItemT = TypeVar("ItemT", bound=Costed)
ResultT = TypeVar("ResultT")


@dataclass(slots=True)
class _Entry(Generic[ItemT, ResultT]):
    item: ItemT
    answer: asyncio.Future[ResultT]
    queued_at: float


class Batcher(Generic[InputT, ItemT, ResultT]):
    """Joins the items of many callers into batches, first in first out.

    ``prepare`` turns a caller's inputs into items, one for each. ``compute`` takes a batch of items
    and returns a result for each, in order; one batch at a time. Both are awaited, so that they say
    by themselves which thread the work runs on.
    """

    def __init__(
        self,
        prepare: Callable[[Sequence[InputT]], Awaitable[Sequence[ItemT]]],
        compute: Callable[[Sequence[ItemT]], Awaitable[Sequence[ResultT]]],
        limits: Batching,
        observer: Observer,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._prepare = prepare
        self._compute = compute
        self._limits = limits
        self._observer = observer
        self._clock = clock
        self._queue: deque[_Entry[ItemT, ResultT]] = deque()
        self._preparing = 0
        self._in_flight: list[_Entry[ItemT, ResultT]] = []
        self._arrived = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._seconds_per_item = 0.0

    @property
    def alive(self) -> bool:
        """Whether the loop runs; once false, it stays false."""
        return self._loop is not None and not self._loop.done()

    def start(self) -> None:
        """Start the loop on the running event loop."""
        self._loop = asyncio.create_task(self._run(), name="batcher")
        self._loop.add_done_callback(self._stopped)

    async def close(self) -> None:
        """Stop the loop; callers still waiting get NotReady."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait([self._loop])

    async def submit(self, inputs: Sequence[InputT]) -> list[ResultT]:
        """Return a result for each input, in order.

        QueueFull if they do not all fit, and then none is taken; InferenceFailed if a batch with
        one of them failed; NotReady if the loop is not running.
        """
        items = await self._admit(inputs)
        if not self.alive:
            raise NotReady
        loop, now = asyncio.get_running_loop(), self._clock()
        entries = [_Entry(item, loop.create_future(), now) for item in items]
        self._queue.extend(entries)
        self._tell_waiting()
        self._arrived.set()
        answers = [entry.answer for entry in entries]
        try:
            return list(await asyncio.gather(*answers))
        finally:
            # One failed or the caller is gone: nobody waits for the others, so none is computed.
            for answer in answers:
                answer.cancel()

    async def _admit(self, inputs: Sequence[InputT]) -> Sequence[ItemT]:
        """Prepare the inputs, if there is room: what waits to be prepared waits in the queue."""
        if not self.alive:
            raise NotReady
        if self._waiting + len(inputs) > self._limits.max_queue_items:
            raise QueueFull(self._drain_seconds())
        self._preparing += len(inputs)
        self._tell_waiting()
        try:
            return await self._prepare(inputs)
        finally:
            self._preparing -= len(inputs)

    @property
    def _waiting(self) -> int:
        return self._preparing + len(self._queue)

    def _tell_waiting(self) -> None:
        self._observer.queue_changed(self._waiting)

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            self._in_flight = self._take_batch()
            self._tell_waiting()
            if not self._queue:
                self._arrived.clear()
            if self._in_flight:
                await self._answer(self._in_flight)

    def _take_batch(self) -> list[_Entry[ItemT, ResultT]]:
        """Take from the queue's head what fits the budget; an item over the budget goes alone."""
        batch: list[_Entry[ItemT, ResultT]] = []
        longest = 0
        while self._queue and len(batch) < self._limits.max_batch_size:
            entry = self._queue[0]
            if not entry.answer.done():
                longest = max(longest, entry.item.cost)
                if batch and longest * (len(batch) + 1) > self._limits.max_batch_tokens:
                    break
                batch.append(entry)
            self._queue.popleft()
        return batch

    async def _answer(self, batch: list[_Entry[ItemT, ResultT]]) -> None:
        started = self._clock()
        try:
            results = await self._compute([entry.item for entry in batch])
            # Made here, so that a wrong number of results fails the batch and no more.
            pairs = [*zip(batch, results, strict=True)]
        except Exception:
            logger.exception("batch_failed", size=len(batch))
            self._settle(batch, InferenceFailed)
            self._observer.batch_failed()
            return
        for entry, result in pairs:
            if not entry.answer.done():
                entry.answer.set_result(result)
        self._report(batch, started, self._clock() - started)

    def _report(
        self, batch: list[_Entry[ItemT, ResultT]], started: float, inference_seconds: float
    ) -> None:
        costs = [entry.item.cost for entry in batch]
        self._seconds_per_item = inference_seconds / len(batch)
        self._observer.batch_computed(
            BatchReport(
                size=len(batch),
                tokens=sum(costs),
                padded_tokens=max(costs) * len(batch),
                queue_seconds=[started - entry.queued_at for entry in batch],
                inference_seconds=inference_seconds,
            )
        )

    def _drain_seconds(self) -> int:
        """Return what all that waits takes at the last batch's pace, in seconds, at least 1."""
        return max(1, math.ceil(self._waiting * self._seconds_per_item))

    def _settle(
        self, entries: Sequence[_Entry[ItemT, ResultT]], error: Callable[[], Exception]
    ) -> None:
        for entry in entries:
            if not entry.answer.done():
                entry.answer.set_exception(error())

    def _stopped(self, loop: asyncio.Task[None]) -> None:
        """Answer whoever waits, as no one else will."""
        if not loop.cancelled():
            logger.critical("batcher_died", exc_info=loop.exception())
        self._settle([*self._in_flight, *self._queue], NotReady)
        self._queue.clear()
