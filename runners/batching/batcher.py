"""The batcher: one queue before one device, shared fairly between subjects.

There is no timer. Each lane of the device takes a batch from the queue as soon as it is free, so an
idle device starts at once, and batches grow while it is busy.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Generic, Protocol, TypeVar

import structlog

from kaiten.context import current_or_none
from kaiten.errors import DeadlineExceeded, InferenceFailed, NotReady, OutOfMemory, QueueFull
from kaiten.serving import BatchStats
from kaiten.settings.models import BatchingSettings
from runners.batching.fairness import FairQueue, has_room
from runners.batching.observer import Observer
from runners.batching.selection import BatchLimits, choose_batch
from runners.batching.throughput import Throughput
from runners.batching.watchdog import DeviceHung, Watchdog

logger = structlog.get_logger(__name__)
# A batch is selected from so many items, or from as many as it may hold: the selection then takes
# little time however long the queue.
_CANDIDATES = 256
# A call is queued if its queue delay is at most this share of its time: the throughput is a mean,
# and a late answer costs as much as one in time.
_MAX_WAIT_SHARE = 0.7
# For so many seconds after a light subject's call while others wait, a batch takes no longer than
# this: the subject's next call waits for the batch in progress. On a slow device a batch is still a
# quarter of the largest, because smaller ones compute less per second. A subject is light if its
# waiting items cost no more than that quarter, and its own batch is not filled up past a sixteenth.
_SHARED_S, _MAX_SHARED_BATCH_S = 5.0, 0.04
_SHORT_SHARE, _LIGHT_SHARE = 4, 16
# So many failed items in a row may be the device's fault.
_SUSPICIOUS_FAILURES = 8


class Costed(Protocol):
    """An item with its cost on the device, in tokens (or pixels, or rows)."""

    @property
    def cost(self) -> int: ...


InputT = TypeVar("InputT")
ItemT = TypeVar("ItemT", bound=Costed)
ResultT = TypeVar("ResultT")
ItemT_contra = TypeVar("ItemT_contra", contravariant=True)
ResultT_co = TypeVar("ResultT_co", covariant=True)


class Compute(Protocol[ItemT_contra, ResultT_co]):
    """Computes one batch, on a thread of its choice."""

    async def __call__(self, batch: Sequence[ItemT_contra], *, alone: bool) -> Sequence[ResultT_co]:
        """Return a result for each item, in order.

        ``alone`` means that nothing else computes or waits.

        Raises:
            OutOfMemory: The batch does not fit into the device's memory.

        """


@dataclass(frozen=True, slots=True)
class Device(Generic[ItemT, ResultT]):
    """A device that computes batches.

    ``lanes`` is the number of batches at once, ``batch_tokens`` and ``batch_items`` the padded
    tokens and the items of a batch that suit it. A ``packed`` device computes no padding.
    ``express`` computes one more batch, a small one, while every lane is busy. ``check`` raises if
    the device cannot compute a known item. ``watchdog`` limits the time of a computation, and of a
    preparation that it watches.
    """

    compute: Compute[ItemT, ResultT]
    lanes: int
    batch_tokens: int
    batch_items: int = 64
    packed: bool = False
    express: Compute[ItemT, ResultT] | None = None
    check: Callable[[], Awaitable[None]] | None = None
    watchdog: Watchdog = field(default_factory=lambda: Watchdog(None))


@dataclass(slots=True, eq=False)
class _Call(Generic[ResultT]):
    """One call, which waits for all of its results."""

    answer: asyncio.Future[Sequence[ResultT]]
    results: dict[int, ResultT]
    size: int
    queued_at: float
    deadline: float
    request_id: str | None
    subject: str


@dataclass(slots=True, eq=False)
class _Entry(Generic[ItemT, ResultT]):
    """One item of a call, and the number of batches with a younger item when it was its turn."""

    item: ItemT
    call: _Call[ResultT]
    index: int
    overtakes: int = 0

    @property
    def subject(self) -> str:
        return self.call.subject

    @property
    def cost(self) -> int:
        return self.item.cost


class Batcher(Generic[InputT, ItemT, ResultT]):
    """Batches the items of many calls by similar lengths.

    ``prepare`` converts a subject's inputs to items, one each. ``on_death`` is called once if a
    lane ends by an unexpected error, after which no call is answered.
    """

    def __init__(
        self,
        prepare: Callable[[Sequence[InputT], str], Awaitable[Sequence[ItemT]]],
        device: Device[ItemT, ResultT],
        settings: BatchingSettings,
        observer: Observer,
        *,
        on_death: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._prepare = prepare
        self._device = device
        self._settings = settings
        self._budget = settings.max_batch_tokens or device.batch_tokens
        self._observer = observer
        self._on_death = on_death
        self._watchdog = device.watchdog
        self._clock = clock
        self._queue = FairQueue[_Entry[ItemT, ResultT]](settings.max_overtakes)
        # The number of items that wait for their preparation, by subject.
        self._preparing: Counter[str] = Counter()
        self._shared_until = -math.inf
        self._in_flight: list[list[_Entry[ItemT, ResultT]]] = []
        self._arrived, self._light_arrived = asyncio.Event(), asyncio.Event()
        # Lanes that compute, without the express lane.
        self._busy_lanes = 0
        self._lanes: list[asyncio.Task[None]] = []
        self._throughput = Throughput()
        self._failures_in_a_row = 0
        self._ended = False
        # Whether a thread of the device hangs, so that the process cannot end by itself.
        self.hung = False

    @property
    def alive(self) -> bool:
        """Whether every lane runs; once false, it stays false."""
        return bool(self._lanes) and not any(lane.done() for lane in self._lanes)

    @property
    def queue_delay_s(self) -> int:
        """The time for all waiting items at the measured throughput, in seconds, at least 1."""
        return max(1, math.ceil(self._queue_delay_s))

    @property
    def _queue_delay_s(self) -> float:
        return self._throughput.duration_s(self._queue.cost, self._preparing.total())

    def retry_after_s(
        self, subject: str, inputs: int, deadline: float, ahead: int = 0
    ) -> int | None:
        """Return after how many seconds to retry if these inputs would be rejected now.

        Returns None if there is room for them. ``deadline`` is by the batcher's clock, and
        ``ahead`` the number of the subject's inputs that will be submitted before them.
        """
        return None if self._has_room(subject, inputs, deadline, ahead) else self.queue_delay_s

    def start(self) -> None:
        """Start the lanes on the running event loop."""
        for number in range(self._device.lanes):
            lane = asyncio.create_task(self._lane(), name=f"batcher-{number}")
            self._lanes.append(lane)
        if self._device.express is not None:
            express = self._express_lane(self._device.express)
            self._lanes.append(asyncio.create_task(express, name="express-lane"))
        # It ends as a lane does when a computation or a preparation hangs.
        self._lanes.append(asyncio.create_task(self._watchdog.until_hung(), name="watchdog"))
        for lane in self._lanes:
            lane.add_done_callback(self._lane_ended)

    async def close(self) -> None:
        """Stop the lanes; waiting calls raise NotReady."""
        self._ended = True
        for lane in self._lanes:
            lane.cancel()
        if self._lanes:
            await asyncio.wait(self._lanes)

    async def submit(
        self,
        inputs: Sequence[InputT],
        deadline: float = math.inf,
        subject: str = "",
        reserve: Callable[[int], Awaitable[None]] | None = None,
    ) -> Sequence[ResultT]:
        """Return a result for each input, in order.

        ``deadline`` is by the batcher's clock. ``reserve`` is awaited with the items' cost before
        they are queued, and rejects the call if it raises.

        Raises:
            QueueFull: The queue has no room for all of them, or their queue delay would be too
                long for the deadline. None is queued.
            DeadlineExceeded: Some item had not started by the deadline.
            InferenceFailed: Some item failed.
            NotReady: The lanes do not run.

        """
        if not self.alive:
            raise NotReady
        if not self._has_room(subject, len(inputs), deadline):
            raise QueueFull(self.queue_delay_s)
        # Items that wait for their preparation take room in the queue.
        self._preparing[subject] += len(inputs)
        try:
            items = await self._prepare(inputs, subject)
            # Before anything is queued: an item without a cost fails its own call, and no lane.
            cost = sum(item.cost for item in items)
            if reserve is not None:
                await reserve(cost)
            answer = self._enqueue(items, cost, deadline, subject)
        finally:
            self._end_preparing(subject, len(inputs))
        # If the caller leaves, this cancels the answer, and the lanes skip its items.
        return await answer

    def _has_room(self, subject: str, items: int, deadline: float, ahead: int = 0) -> bool:
        """Return whether the items have room, and a queue delay that suits their deadline.

        If nothing waits they are tried at any measured throughput, which may be wrong.
        """
        waiting = self._waiting_items + ahead
        held = self._preparing[subject] + self._queue.items_of(subject) + ahead
        if not has_room(items, held, waiting, self._settings.max_queue_items):
            return False
        unprepared = self._preparing.total() + ahead
        max_delay_s = _MAX_WAIT_SHARE * (deadline - self._clock())
        return (
            not waiting
            or self._throughput.duration_s(self._queue.cost, unprepared) <= max_delay_s
            or self._fair_queue_delay_s(subject, items, ahead) <= max_delay_s
        )

    def _fair_queue_delay_s(self, subject: str, items: int, ahead: int) -> float:
        """Return the queue delay of a subject's items.

        Before them come all of the subject's waiting items, ``ahead`` more, and as much of each
        other subject's cost as the subject will have been served itself by then.
        """
        costs = Counter[str]()
        costs.update(self._queue.costs())
        for other, unprepared in self._preparing.items():
            costs[other] += math.ceil(self._throughput.expected_cost(unprepared))
        before = costs.pop(subject, 0) + self._throughput.expected_cost(ahead)
        share = before + self._throughput.expected_cost(items)
        before += sum(min(cost, share) for cost in costs.values())
        return self._throughput.duration_s(before, 0)

    def _shorten_batches_for_light(self, subject: str) -> None:
        """Keep batches short for a while if a light subject has to wait behind others."""
        cost = self._queue.cost_of(subject)
        if cost < self._queue.cost and cost <= self._budget // _SHORT_SHARE:
            self._shared_until = self._clock() + _SHARED_S

    def _end_preparing(self, subject: str, items: int) -> None:
        self._preparing[subject] -= items
        if not self._preparing[subject]:
            del self._preparing[subject]
        self._report_queue()

    def _enqueue(
        self, items: Sequence[ItemT], cost: int, deadline: float, subject: str
    ) -> asyncio.Future[Sequence[ResultT]]:
        """Queue a call's items and wake the lanes; a call without items is answered at once."""
        if not self.alive:
            raise NotReady
        answer: asyncio.Future[Sequence[ResultT]] = asyncio.get_running_loop().create_future()
        if not items:
            answer.set_result([])
        context = current_or_none()
        request_id = context.request_id if context else None
        call = _Call(answer, {}, len(items), self._clock(), deadline, request_id, subject)
        entries = [_Entry(item, call, index) for index, item in enumerate(items)]
        self._queue.push(subject, entries, cost)
        self._shorten_batches_for_light(subject)
        self._arrived.set()
        if self._queue.cost_of(subject) < self._queue.cost:
            # Other subjects wait, and one of them may be light.
            self._light_arrived.set()
        return answer

    @property
    def _waiting_items(self) -> int:
        return self._preparing.total() + len(self._queue)

    def _report_queue(self) -> None:
        self._observer.queue_changed(self._waiting_items)

    async def _lane(self) -> None:
        while True:
            while not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
            batch = self._take_batch()
            if batch:
                self._busy_lanes += 1
                await self._run_batch(batch, self._device.compute)
                self._busy_lanes -= 1

    async def _express_lane(self, compute: Compute[ItemT, ResultT]) -> None:
        """Compute small batches of light subjects while every lane is busy and heavy ones wait.

        Heavy subjects' batches stay full, and light subjects need not wait for their end.
        """
        while True:
            batch = self._take_light_batch()
            if batch:
                await self._run_batch(batch, compute)
            else:
                self._light_arrived.clear()
                await self._light_arrived.wait()

    async def _run_batch(
        self, batch: list[_Entry[ItemT, ResultT]], compute: Compute[ItemT, ResultT]
    ) -> None:
        alone = not self._in_flight and not self._queue
        self._in_flight.append(batch)
        self._report_queue()
        await self._answer(batch, compute, alone=alone)
        # Not in a `finally`: the calls of a dying lane must still be answered.
        self._in_flight.remove(batch)

    def _take_batch(self) -> list[_Entry[ItemT, ResultT]]:
        """Take the next batch from the queue, after dropping abandoned items."""
        self._drop_abandoned()
        if not self._queue:
            return []
        max_items, max_overtakes = self._max_items, self._settings.max_overtakes
        candidates = self._queue.candidates(max(_CANDIDATES, max_items), self._budget)
        # The free lanes share the waiting items, so that all are done early.
        share = math.ceil(len(self._queue) / (self._device.lanes - self._busy_lanes))
        limits = BatchLimits(
            items=min(max_items, share),
            tokens=self._batch_tokens(candidates[0]),
            padding_ratio=self._settings.max_padding_ratio,
            packed=self._device.packed,
        )
        costs = [entry.cost for entry in candidates]
        due = [entry.overtakes >= max_overtakes for entry in candidates]
        indices = choose_batch(costs, due, limits)
        selected = {*indices}
        # Only items whose turn it was are overtaken, not those further back in a long queue.
        for index in range(len(indices)):
            if index not in selected:
                candidates[index].overtakes += 1
        batch = [candidates[index] for index in indices]
        self._queue.take(batch)
        return batch

    def _take_light_batch(self) -> list[_Entry[ItemT, ResultT]]:
        """Take a batch of light subjects' items if they would have to wait behind heavy ones."""
        if self._busy_lanes < self._device.lanes or not self._has_light_items():
            return []
        self._drop_abandoned()
        if not self._has_light_items():
            return []
        max_tokens = self._budget // _SHORT_SHARE
        candidates = [
            entry
            for entry in self._queue.candidates(max(_CANDIDATES, self._max_items), self._budget)
            if self._queue.cost_of(entry.subject) <= max_tokens
        ]
        if not candidates:
            return []
        limits = BatchLimits(
            self._max_items, max_tokens, self._settings.max_padding_ratio, self._device.packed
        )
        costs = [entry.cost for entry in candidates]
        indices = choose_batch(costs, [False] * len(costs), limits)
        batch = [candidates[index] for index in indices]
        self._queue.take(batch)
        return batch

    def _has_light_items(self) -> bool:
        """Return whether items of light subjects wait beside those of heavy ones."""
        return 0 < self._queue.cost_up_to(self._budget // _SHORT_SHARE) < self._queue.cost

    @property
    def _max_items(self) -> int:
        return self._settings.max_batch_items or self._device.batch_items

    def _batch_tokens(self, head: _Entry[ItemT, ResultT]) -> int:
        """Return the tokens of a batch: fewer while light and heavy subjects share the device."""
        if self._device.express is not None or self._clock() >= self._shared_until:
            return self._budget
        max_tokens = max(
            self._throughput.cost_within(_MAX_SHARED_BATCH_S / self._device.lanes),
            self._budget // _SHORT_SHARE,
            1,
        )
        if max_tokens >= self._budget:
            return self._budget
        light_tokens = max(1, self._budget // _LIGHT_SHARE)
        light_cost = self._queue.cost_up_to(light_tokens)
        if light_cost == self._queue.cost:
            # Only light subjects have waiting items.
            return self._budget
        if self._queue.cost_of(head.subject) <= light_tokens:
            return max(light_tokens, min(light_cost, int(max_tokens)))
        return int(max_tokens)

    def _drop_abandoned(self) -> None:
        """Drop the items of calls that have ended or are past their deadline."""
        now = self._clock()
        dropped = self._queue.drop(
            lambda entry: entry.call.deadline <= now or entry.call.answer.done()
        )
        if not dropped:
            return
        expired = [entry for entry in dropped if entry.call.deadline <= now]
        for entry in expired:
            _fail(entry.call, DeadlineExceeded(self.queue_delay_s))
        self._observer.items_skipped(gone=len(dropped) - len(expired), expired=len(expired))
        self._report_queue()

    async def _answer(
        self,
        batch: Sequence[_Entry[ItemT, ResultT]],
        compute: Compute[ItemT, ResultT],
        *,
        alone: bool,
    ) -> None:
        """Compute a batch and answer its calls; bisect a batch that fails."""
        started = self._clock()
        try:
            with self._watchdog.watching():
                results = await compute([entry.item for entry in batch], alone=alone)
            # In the `try`, so that a wrong number of results fails only this batch.
            pairs = [*zip(batch, results, strict=True)]
        except OutOfMemory:
            self._reduce_budget(batch)
            await self._bisect(batch, compute)
            return
        except Exception:
            if len(batch) > 1:
                logger.warning("batch_failed", size=len(batch))
            else:
                # A lane's context has no request, so its id is passed.
                logger.exception("item_failed", request_id=batch[0].call.request_id)
            self._observer.batch_failed()
            await self._bisect(batch, compute)
            await self._check_device(batch)
            return
        self._failures_in_a_row = 0
        for entry, result in pairs:
            call = entry.call
            call.results[entry.index] = result
            if len(call.results) == call.size and not call.answer.done():
                call.answer.set_result([call.results[index] for index in range(call.size)])
        self._report(batch, started, self._clock() - started)

    async def _check_device(self, batch: Sequence[_Entry[ItemT, ResultT]]) -> None:
        """Check the device after several failures in a row; an error ends the lane.

        Otherwise a broken device would fail every call.
        """
        if len(batch) == 1:
            self._failures_in_a_row += 1
        if self._failures_in_a_row >= _SUSPICIOUS_FAILURES and self._device.check is not None:
            self._failures_in_a_row = 0
            with self._watchdog.watching():
                await self._device.check()

    def _reduce_budget(self, batch: Sequence[_Entry[ItemT, ResultT]]) -> None:
        """Limit later batches to half of one that the device has no memory for."""
        if len(batch) > 1:
            computed = self._padded_tokens([entry.item.cost for entry in batch])
            self._budget = max(1, min(self._budget, computed // 2))
        logger.warning("out_of_memory", size=len(batch), batch_tokens=self._budget)
        self._observer.out_of_memory()

    async def _bisect(
        self, batch: Sequence[_Entry[ItemT, ResultT]], compute: Compute[ItemT, ResultT]
    ) -> None:
        if len(batch) == 1:
            _fail(batch[0].call, InferenceFailed())
            return
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            waiting = [entry for entry in half if not entry.call.answer.done()]
            if waiting:
                await self._answer(waiting, compute, alone=False)

    def _report(
        self, batch: Sequence[_Entry[ItemT, ResultT]], started: float, inference_s: float
    ) -> None:
        costs = [entry.item.cost for entry in batch]
        self._throughput.add_batch(inference_s / self._device.lanes, len(batch), sum(costs))
        self._observer.batch_computed(
            BatchStats(
                items=len(batch),
                tokens=sum(costs),
                padded_tokens=self._padded_tokens(costs),
                queue_delays_s=[started - entry.call.queued_at for entry in batch],
                inference_s=inference_s,
            )
        )

    def _padded_tokens(self, costs: Sequence[int]) -> int:
        """Return the computed tokens of a batch of items with these costs."""
        return sum(costs) if self._device.packed else max(costs) * len(costs)

    def _lane_ended(self, lane: asyncio.Task[None]) -> None:
        """Fail all waiting calls, and end the other lanes."""
        for other in self._lanes:
            other.cancel()
        for entry in chain(*self._in_flight, self._queue):
            _fail(entry.call, NotReady())
        self._queue.clear()
        # Only `close` may cancel a lane: one that its own computation cancelled has died.
        error = asyncio.CancelledError() if lane.cancelled() else lane.exception()
        if not self._ended:
            self._ended = True
            if isinstance(error, DeviceHung):
                self.hung = True
                self._observer.device_hung()
                logger.critical("device_hung", reason=str(error))
            logger.critical("batcher_died", exc_info=error)
            self._on_death()


def _fail(call: _Call[ResultT], error: Exception) -> None:
    if not call.answer.done():
        call.answer.set_exception(error)
