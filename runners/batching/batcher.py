"""The batcher: one queue before one device, shared fairly between subjects.

There is no timer. Each lane of the device takes from the queue as soon as it is free, so an idle
device starts at once, and batches grow by themselves while it is busy.
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
from kaiten.settings.models import BatchingSettings
from runners.batching.fairness import FairQueue, fits
from runners.batching.observer import BatchReport, Observer
from runners.batching.selection import Bounds, choose
from runners.batching.throughput import Pace
from runners.batching.watchdog import DeviceHung, Watchdog

logger = structlog.get_logger(__name__)
# Only so many of the oldest are looked at, or what one batch may hold, so that choosing costs
# little however many wait.
_WINDOW = 256
# A call is queued if what waits before it takes no more than this share of its time: the pace is a
# mean, and an answer that comes too late has cost as much as one in time.
_SHARE_OF_WAITING = 0.7
# For so many seconds after a light subject asked while others waited, a batch takes no longer than
# this: a subject that asks again waits for the batch in progress. On a slow device a batch is still
# a quarter of the largest, because smaller ones compute less per second. A subject is light if its
# waiting items cost no more than that quarter, and its own batch is not filled up past a sixteenth.
_SHARED_S, _SHARED_BATCH_S = 5.0, 0.04
_LEAST_SHARE, _LIGHT_SHARE = 4, 16
# So many items that fail, and none between them that does not, may be the device's fault.
_SUSPICIOUS = 8


class Costed(Protocol):
    """An item that knows what it costs the device, in tokens (or pixels, or rows)."""

    @property
    def cost(self) -> int: ...


InputT = TypeVar("InputT")
ItemT = TypeVar("ItemT", bound=Costed)
ResultT = TypeVar("ResultT")
ItemT_contra = TypeVar("ItemT_contra", contravariant=True)
ResultT_co = TypeVar("ResultT_co", covariant=True)


class Compute(Protocol[ItemT_contra, ResultT_co]):
    """Computes one batch; awaited, so that it says by itself which thread it runs on."""

    async def __call__(self, batch: Sequence[ItemT_contra], *, alone: bool) -> Sequence[ResultT_co]:
        """Return a result for each item, in order; ``alone``: nothing else computes or waits.

        OutOfMemory if the batch does not fit into the device's memory.
        """


@dataclass(frozen=True, slots=True)
class Device(Generic[ItemT, ResultT]):
    """What computes.

    ``lanes`` is how many batches it computes at once, ``batch_tokens`` and ``batch_items`` the
    padded tokens and the items of a batch that suit it; ``packed``: it computes no padding.
    ``express`` computes one more batch, a small one, while every lane is busy; None for none.
    ``check`` raises unless the device computes what it is known to be able to. ``watchdog`` bounds
    how long a computation may take, and a preparation that it watches.
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
    """One caller, who waits for all of its results."""

    answer: asyncio.Future[Sequence[ResultT]]
    results: dict[int, ResultT]
    size: int
    queued_at: float
    deadline: float
    request_id: str | None
    subject: str


@dataclass(slots=True, eq=False)
class _Entry(Generic[ItemT, ResultT]):
    """One item of a call, and how many batches took a younger one when it was its turn."""

    item: ItemT
    call: _Call[ResultT]
    index: int
    overtaken: int = 0

    @property
    def subject(self) -> str:
        return self.call.subject

    @property
    def cost(self) -> int:
        return self.item.cost


class Batcher(Generic[InputT, ItemT, ResultT]):
    """Joins the items of many callers into batches of similar lengths.

    ``prepare`` turns a subject's inputs into items, one for each. ``on_death`` is told once if a
    lane ends by an error of ours: from then on nobody is served.
    """

    def __init__(
        self,
        prepare: Callable[[Sequence[InputT], str], Awaitable[Sequence[ItemT]]],
        device: Device[ItemT, ResultT],
        limits: BatchingSettings,
        observer: Observer,
        *,
        on_death: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._prepare = prepare
        self._device = device
        self._limits = limits
        self._budget = limits.max_batch_tokens or device.batch_tokens
        self._observer = observer
        self._on_death = on_death
        self._watchdog = device.watchdog
        self._clock = clock
        self._queue = FairQueue[_Entry[ItemT, ResultT]](limits.max_overtakes)
        # How many items of each subject wait to be prepared.
        self._preparing: Counter[str] = Counter()
        self._shared_until = -math.inf
        self._in_flight: list[list[_Entry[ItemT, ResultT]]] = []
        self._arrived, self._light_arrived = asyncio.Event(), asyncio.Event()
        # Lanes that compute, the express lane aside.
        self._busy_lanes = 0
        self._lanes: list[asyncio.Task[None]] = []
        self._pace = Pace()
        self._failed_in_a_row = 0
        self._ended = False
        # Whether a thread of the device hangs, which would be waited for at the end.
        self.hung = False

    @property
    def alive(self) -> bool:
        """Whether every lane runs; once false, it stays false."""
        return bool(self._lanes) and not any(lane.done() for lane in self._lanes)

    @property
    def drain_seconds(self) -> int:
        """What all that waits takes at the measured pace, in whole seconds, at least 1."""
        return max(1, math.ceil(self._drain_s))

    @property
    def _drain_s(self) -> float:
        return self._pace.seconds(self._queue.cost, self._preparing.total())

    def retry_after_s(
        self, subject: str, inputs: int, deadline: float, ahead: int = 0
    ) -> int | None:
        """Return when to retry, in seconds, if so many inputs of a subject would be refused now.

        None if there is room for them; ``deadline`` by the batcher's clock, and ``ahead`` the
        inputs of the subject that are to be submitted before them.
        """
        return None if self._has_room(subject, inputs, deadline, ahead) else self.drain_seconds

    def start(self) -> None:
        """Start the lanes on the running event loop."""
        for number in range(self._device.lanes):
            lane = asyncio.create_task(self._lane(), name=f"batcher-{number}")
            self._lanes.append(lane)
        if self._device.express is not None:
            express = self._express_lane(self._device.express)
            self._lanes.append(asyncio.create_task(express, name="express-lane"))
        # It ends like a lane, where a computation or a preparation does not end at all.
        self._lanes.append(asyncio.create_task(self._watchdog.until_hung(), name="watchdog"))
        for lane in self._lanes:
            lane.add_done_callback(self._stopped)

    async def close(self) -> None:
        """Stop the lanes; callers still waiting get NotReady."""
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
        """Return a result for each input, in order; ``deadline`` by the batcher's clock.

        ``reserve`` is awaited with the items' cost before they are queued; what it raises refuses
        the request. QueueFull if they do not all fit, or would wait too long for the deadline, and
        then none is taken; DeadlineExceeded if one of them had not begun by the deadline;
        InferenceFailed if one of them failed; NotReady if the lanes do not run.
        """
        if not self.alive:
            raise NotReady
        if not self._has_room(subject, len(inputs), deadline):
            raise QueueFull(self.drain_seconds)
        # What waits to be prepared waits in the queue.
        self._preparing[subject] += len(inputs)
        try:
            items = await self._prepare(inputs, subject)
            # Before anything is queued: an item without a price fails its own caller, and no lane.
            cost = sum(item.cost for item in items)
            if reserve is not None:
                await reserve(cost)
            answer = self._enqueue(items, cost, deadline, subject)
        finally:
            self._prepared(subject, len(inputs))
        # If the caller goes, this cancels the answer: the lanes skip what it had queued.
        return await answer

    def _has_room(self, subject: str, items: int, deadline: float, ahead: int = 0) -> bool:
        """Whether so many items fit, and need not wait for most of the time that they have.

        Where nothing waits, they are tried whatever the pace says: it may be wrong.
        """
        waiting = self._waiting + ahead
        held = self._preparing[subject] + self._queue.held(subject) + ahead
        if not fits(items, held, waiting, self._limits.max_queue_items):
            return False
        patience = _SHARE_OF_WAITING * (deadline - self._clock())
        return (
            not waiting
            or self._pace.seconds(self._queue.cost, self._preparing.total() + ahead) <= patience
            or self._fair_wait_s(subject, items, ahead) <= patience
        )

    def _fair_wait_s(self, subject: str, items: int, ahead: int) -> float:
        """Return how long a subject's items wait for what is served before them.

        That is all that the subject has waiting, ``ahead`` items that come before them, and as much
        of each other subject as it will have been served itself by then.
        """
        costs = Counter[str]()
        costs.update(self._queue.costs())
        for other, unknown in self._preparing.items():
            costs[other] += math.ceil(self._pace.cost(unknown))
        own = costs.pop(subject, 0) + self._pace.cost(ahead)
        share = own + self._pace.cost(items)
        return self._pace.seconds(own + sum(min(cost, share) for cost in costs.values()), 0)

    def _note_light_subject(self, subject: str) -> None:
        """Keep batches short for a while if a light subject has to wait behind others."""
        cost = self._queue.cost_of(subject)
        if cost < self._queue.cost and cost <= self._budget // _LEAST_SHARE:
            self._shared_until = self._clock() + _SHARED_S

    def _prepared(self, subject: str, items: int) -> None:
        self._preparing[subject] -= items
        if not self._preparing[subject]:
            del self._preparing[subject]
        self._tell_waiting()

    def _enqueue(
        self, items: Sequence[ItemT], cost: int, deadline: float, subject: str
    ) -> asyncio.Future[Sequence[ResultT]]:
        """Queue a caller's items and wake the lanes; a caller of none is answered with none."""
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
        self._note_light_subject(subject)
        self._arrived.set()
        if self._queue.cost_of(subject) < self._queue.cost:
            # Other subjects wait, and one of them may be light.
            self._light_arrived.set()
        return answer

    @property
    def _waiting(self) -> int:
        return self._preparing.total() + len(self._queue)

    def _tell_waiting(self) -> None:
        self._observer.queue_changed(self._waiting)

    async def _lane(self) -> None:
        while True:
            while not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
            batch = self._take()
            if batch:
                self._busy_lanes += 1
                await self._occupy(batch, self._device.compute)
                self._busy_lanes -= 1

    async def _express_lane(self, compute: Compute[ItemT, ResultT]) -> None:
        """Compute small batches of light subjects while every lane is busy and heavy ones wait.

        So heavy subjects' batches may be full, and light ones need not wait for them to end.
        """
        while True:
            batch = self._take_light()
            if batch:
                await self._occupy(batch, compute)
            else:
                self._light_arrived.clear()
                await self._light_arrived.wait()

    async def _occupy(
        self, batch: list[_Entry[ItemT, ResultT]], compute: Compute[ItemT, ResultT]
    ) -> None:
        alone = not self._in_flight and not self._queue
        self._in_flight.append(batch)
        self._tell_waiting()
        await self._answer(batch, compute, alone=alone)
        # Not in a `finally`: what a dying lane holds must still be answered.
        self._in_flight.remove(batch)

    def _take(self) -> list[_Entry[ItemT, ResultT]]:
        """Take the next batch from the queue, and drop whom nobody waits for any more."""
        self._drop_forgotten()
        if not self._queue:
            return []
        most = self._most_items
        window = self._queue.window(max(_WINDOW, most), self._budget)
        overtaken = self._limits.max_overtakes
        # What waits is shared by the lanes that are free, so that all are done early.
        share = math.ceil(len(self._queue) / (self._device.lanes - self._busy_lanes))
        bounds = Bounds(
            items=min(most, share),
            tokens=self._batch_tokens(window[0]),
            padding=self._limits.max_padding_ratio,
            packed=self._device.packed,
        )
        costs = [entry.cost for entry in window]
        chosen = choose(costs, [entry.overtaken >= overtaken for entry in window], bounds)
        taken = {*chosen}
        # Those whose turn it was; who is further back is not late yet, however long the queue.
        for index in range(len(chosen)):
            if index not in taken:
                window[index].overtaken += 1
        batch = [window[index] for index in chosen]
        self._queue.take(batch)
        return batch

    def _take_light(self) -> list[_Entry[ItemT, ResultT]]:
        """Take a batch of light subjects' items if they would have to wait behind heavy ones."""
        if self._busy_lanes < self._device.lanes or not self._has_light_items():
            return []
        self._drop_forgotten()
        if not self._has_light_items():
            return []
        limit = self._budget // _LEAST_SHARE
        window = [
            entry
            for entry in self._queue.window(max(_WINDOW, self._most_items), self._budget)
            if self._queue.cost_of(entry.subject) <= limit
        ]
        if not window:
            return []
        bounds = Bounds(
            self._most_items, limit, self._limits.max_padding_ratio, self._device.packed
        )
        costs = [entry.cost for entry in window]
        batch = [window[index] for index in choose(costs, [False] * len(costs), bounds)]
        self._queue.take(batch)
        return batch

    def _has_light_items(self) -> bool:
        """Whether items of light subjects wait beside those of heavy ones."""
        return 0 < self._queue.cost_up_to(self._budget // _LEAST_SHARE) < self._queue.cost

    @property
    def _most_items(self) -> int:
        return self._limits.max_batch_items or self._device.batch_items

    def _batch_tokens(self, head: _Entry[ItemT, ResultT]) -> int:
        """Return the tokens of a batch: fewer while light and heavy subjects share the device."""
        if self._device.express is not None or self._clock() >= self._shared_until:
            return self._budget
        short = max(
            self._pace.within(_SHARED_BATCH_S / self._device.lanes),
            self._budget // _LEAST_SHARE,
            1,
        )
        if short >= self._budget:
            return self._budget
        least = max(1, self._budget // _LIGHT_SHARE)
        light = self._queue.cost_up_to(least)
        if light == self._queue.cost:
            # Nothing that waits makes a light subject wait for long.
            return self._budget
        if self._queue.cost_of(head.subject) <= least:
            return max(least, min(light, int(short)))
        return int(short)

    def _drop_forgotten(self) -> None:
        """Drop the items of callers who are gone, have failed or are past their deadline."""
        now = self._clock()
        dropped = self._queue.drop(
            lambda entry: entry.call.deadline <= now or entry.call.answer.done()
        )
        if not dropped:
            return
        expired = [entry for entry in dropped if entry.call.deadline <= now]
        for entry in expired:
            _fail(entry.call, DeadlineExceeded(self.drain_seconds))
        self._observer.items_skipped(gone=len(dropped) - len(expired), expired=len(expired))
        self._tell_waiting()

    async def _answer(
        self,
        batch: Sequence[_Entry[ItemT, ResultT]],
        compute: Compute[ItemT, ResultT],
        *,
        alone: bool,
    ) -> None:
        """Compute a batch and answer its callers; a part that fails is halved until one is left."""
        started = self._clock()
        try:
            with self._watchdog.watching():
                results = await compute([entry.item for entry in batch], alone=alone)
            # Made here, so that a wrong number of results fails the batch and no more.
            pairs = [*zip(batch, results, strict=True)]
        except OutOfMemory:
            self._shrink(batch)
            await self._narrow_down(batch, compute)
            return
        except Exception:
            if len(batch) > 1:
                logger.warning("batch_failed", size=len(batch))
            else:
                # The one that fails by itself. A lane serves no request, so its id is given.
                logger.exception("item_failed", request_id=batch[0].call.request_id)
            self._observer.batch_failed()
            await self._narrow_down(batch, compute)
            await self._doubt(batch)
            return
        self._failed_in_a_row = 0
        for entry, result in pairs:
            call = entry.call
            call.results[entry.index] = result
            if len(call.results) == call.size and not call.answer.done():
                call.answer.set_result([call.results[index] for index in range(call.size)])
        self._report(batch, started, self._clock() - started)

    async def _doubt(self, batch: Sequence[_Entry[ItemT, ResultT]]) -> None:
        """Check the device after several items that failed in a row; what it raises ends the lane.

        Without that, a device that fails at everything would go on to fail every caller.
        """
        if len(batch) == 1:
            self._failed_in_a_row += 1
        if self._failed_in_a_row >= _SUSPICIOUS and self._device.check is not None:
            self._failed_in_a_row = 0
            with self._watchdog.watching():
                await self._device.check()

    def _shrink(self, batch: Sequence[_Entry[ItemT, ResultT]]) -> None:
        """Let no later batch be as large as one that there is no memory for."""
        if len(batch) > 1:
            computed = self._padded_tokens([entry.item.cost for entry in batch])
            self._budget = max(1, min(self._budget, computed // 2))
        logger.warning("out_of_memory", size=len(batch), batch_tokens=self._budget)
        self._observer.out_of_memory()

    async def _narrow_down(
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
        self, batch: Sequence[_Entry[ItemT, ResultT]], started: float, inference_seconds: float
    ) -> None:
        costs = [entry.item.cost for entry in batch]
        self._pace.note(inference_seconds / self._device.lanes, len(batch), sum(costs))
        self._observer.batch_computed(
            BatchReport(
                size=len(batch),
                tokens=sum(costs),
                padded_tokens=self._padded_tokens(costs),
                queue_seconds=[started - entry.call.queued_at for entry in batch],
                inference_seconds=inference_seconds,
            )
        )

    def _padded_tokens(self, costs: Sequence[int]) -> int:
        """Return the tokens that a batch of items of such costs computes."""
        return sum(costs) if self._device.packed else max(costs) * len(costs)

    def _stopped(self, lane: asyncio.Task[None]) -> None:
        """Answer whoever waits, as no one else will; the other lanes end with the first."""
        for other in self._lanes:
            other.cancel()
        for entry in chain(*self._in_flight, self._queue):
            _fail(entry.call, NotReady())
        self._queue.clear()
        # Only `close` may cancel a lane: one that its own computation cancelled has died as well.
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
