"""The batcher with trivial models, a device that the test itself sets free, and a fake clock."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import pytest

from kaiten.errors import InferenceFailed, NotReady, QueueFull
from kaiten.settings import Batching
from runners.batcher import Batcher
from runners.observer import BatchReport


@dataclass(frozen=True, slots=True)
class Item:
    name: str
    cost: int = 1


class Device:
    """Computes ``done NAME`` for each item, once the test lets it."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self._free = asyncio.Event()
        self._busy = asyncio.Event()

    async def compute(self, batch: Sequence[Item]) -> list[str]:
        self.batches.append([item.name for item in batch])
        self._busy.set()
        await self._free.wait()
        if any(item.name == "poison" for item in batch):
            raise ValueError("poison")
        return [f"done {item.name}" for item in batch]

    async def until_busy(self) -> None:
        await self._busy.wait()

    def set_free(self) -> None:
        self._free.set()

    def occupy(self) -> None:
        self._free.clear()
        self._busy.clear()


class Silent:
    """An Observer that keeps nothing."""

    def queue_changed(self, items: int) -> None:
        pass

    def batch_computed(self, report: BatchReport) -> None:
        pass

    def batch_failed(self) -> None:
        pass


@dataclass
class Recorder(Silent):
    """Keeps what it is told."""

    reports: list[BatchReport] = field(default_factory=list)
    failures: int = 0
    depths: list[int] = field(default_factory=list)

    def queue_changed(self, items: int) -> None:
        self.depths.append(items)

    def batch_computed(self, report: BatchReport) -> None:
        self.reports.append(report)

    def batch_failed(self) -> None:
        self.failures += 1


class Clock:
    """Moves only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Bench:
    """A started batcher and all that it touches."""

    device: Device
    observer: Recorder
    clock: Clock
    batcher: Batcher[Item, Item, str]

    def ask(self, *items: Item) -> asyncio.Task[list[str]]:
        return asyncio.create_task(self.batcher.submit(items))

    async def ask_while_busy(self, *callers: Sequence[Item]) -> list[asyncio.Task[list[str]]]:
        """Occupy the device with a first item, queue the callers behind it, in order."""
        first = self.ask(Item("first"))
        await self.device.until_busy()
        tasks = [first, *(self.ask(*items) for items in callers)]
        await settle()
        return tasks


Make = Callable[[Batching], Awaitable[Bench]]


@pytest.fixture
async def make_bench() -> AsyncIterator[Make]:
    made: list[Bench] = []

    async def make(limits: Batching) -> Bench:
        device, observer, clock = Device(), Recorder(), Clock()
        batcher = Batcher(prepared, device.compute, limits, observer, clock)
        batcher.start()
        made.append(Bench(device, observer, clock, batcher))
        return made[-1]

    yield make
    for bench in made:
        await bench.batcher.close()


async def prepared(inputs: Sequence[Item]) -> Sequence[Item]:
    return inputs


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_idle_device_starts_at_once_with_one_item(make_bench: Make) -> None:
    bench = await make_bench(Batching())
    bench.device.set_free()

    assert await bench.batcher.submit([Item("a")]) == ["done a"]
    assert bench.device.batches == [["a"]]


async def test_what_arrives_while_the_device_is_busy_is_one_batch(make_bench: Make) -> None:
    bench = await make_bench(Batching())
    tasks = await bench.ask_while_busy([Item("a")], [Item("b"), Item("c")], [Item("d")])
    bench.device.set_free()

    assert await asyncio.gather(*tasks) == [
        ["done first"],
        ["done a"],
        ["done b", "done c"],
        ["done d"],
    ]
    assert bench.device.batches == [["first"], ["a", "b", "c", "d"]]


async def test_batch_keeps_within_the_padded_token_budget(make_bench: Make) -> None:
    bench = await make_bench(Batching(max_batch_tokens=30))
    # 3 x 10 fits; a fourth of 10 does not; 20 would pad all to 20.
    lengths = [10, 10, 10, 10, 20, 1]
    tasks = await bench.ask_while_busy([Item(str(i), cost) for i, cost in enumerate(lengths)])
    bench.device.set_free()
    await asyncio.gather(*tasks)

    assert bench.device.batches[1:] == [["0", "1", "2"], ["3"], ["4"], ["5"]]


async def test_item_over_the_budget_goes_alone(make_bench: Make) -> None:
    bench = await make_bench(Batching(max_batch_tokens=8))
    tasks = await bench.ask_while_busy([Item("a", 2), Item("huge", 50), Item("b", 2)])
    bench.device.set_free()
    await asyncio.gather(*tasks)

    assert bench.device.batches[1:] == [["a"], ["huge"], ["b"]]


async def test_batch_keeps_within_the_count(make_bench: Make) -> None:
    bench = await make_bench(Batching(max_batch_size=2))
    tasks = await bench.ask_while_busy([Item(str(i)) for i in range(5)])
    bench.device.set_free()
    await asyncio.gather(*tasks)

    assert bench.device.batches[1:] == [["0", "1"], ["2", "3"], ["4"]]


async def test_full_queue_refuses_the_whole_request(make_bench: Make) -> None:
    bench = await make_bench(Batching(max_queue_items=3))
    tasks = await bench.ask_while_busy([Item("a"), Item("b")])

    with pytest.raises(QueueFull):
        await bench.batcher.submit([Item("c"), Item("d")])
    fits = bench.ask(Item("e"))
    await settle()
    bench.device.set_free()
    await asyncio.gather(*tasks, fits)

    assert bench.device.batches == [["first"], ["a", "b", "e"]]


async def test_what_waits_to_be_prepared_counts_as_waiting() -> None:
    opened = asyncio.Event()
    observer = Recorder()

    async def slowly(inputs: Sequence[Item]) -> Sequence[Item]:
        await opened.wait()
        return inputs

    device = Device()
    device.set_free()
    batcher = Batcher(slowly, device.compute, Batching(max_queue_items=3), observer)
    batcher.start()
    tasks = [asyncio.create_task(batcher.submit([Item(name)])) for name in "abc"]
    gone = tasks.pop()
    await settle()

    assert observer.depths[-1] == 3
    with pytest.raises(QueueFull):
        await batcher.submit([Item("d")])
    gone.cancel()
    await settle()
    tasks.append(asyncio.create_task(batcher.submit([Item("e")])))
    opened.set()
    assert await asyncio.gather(*tasks) == [["done a"], ["done b"], ["done e"]]
    assert observer.depths[-1] == 0
    await batcher.close()


async def test_retry_after_follows_the_measured_pace(make_bench: Make) -> None:
    bench = await make_bench(Batching(max_queue_items=4))
    first = bench.ask(Item("slow"))
    await bench.device.until_busy()
    bench.clock.now += 2.0  # one item took two seconds
    bench.device.set_free()
    await first
    bench.device.occupy()
    waiting = await bench.ask_while_busy([Item("a"), Item("b"), Item("c")])

    with pytest.raises(QueueFull) as refusal:
        await bench.batcher.submit([Item("d"), Item("e")])
    bench.device.set_free()
    await asyncio.gather(*waiting)

    assert refusal.value.retry_after_s == 6


async def test_caller_who_is_gone_is_not_computed(make_bench: Make) -> None:
    bench = await make_bench(Batching())
    first, gone, stays = await bench.ask_while_busy([Item("gone")], [Item("stays")])
    gone.cancel()
    await settle()
    bench.device.set_free()

    assert list(await asyncio.gather(first, stays)) == [["done first"], ["done stays"]]
    assert bench.device.batches == [["first"], ["stays"]]


async def test_queue_of_only_gone_callers_does_not_stop_the_loop(make_bench: Make) -> None:
    bench = await make_bench(Batching())
    first, gone = await bench.ask_while_busy([Item("gone")])
    gone.cancel()
    await settle()
    bench.device.set_free()
    await first
    await settle()

    assert await bench.batcher.submit([Item("next")]) == ["done next"]


async def test_failed_batch_answers_its_own_callers_only(make_bench: Make) -> None:
    bench = await make_bench(Batching(max_batch_size=2))
    tasks = await bench.ask_while_busy([Item("poison")], [Item("near")], [Item("far")])
    bench.device.set_free()
    first, poison, near, far = await asyncio.gather(*tasks, return_exceptions=True)

    assert first == ["done first"]
    assert isinstance(poison, InferenceFailed)
    assert isinstance(near, InferenceFailed)
    assert far == ["done far"]
    assert bench.observer.failures == 1
    assert bench.batcher.alive


async def test_wrong_number_of_results_fails_the_batch_and_not_the_loop() -> None:
    async def forgetful(batch: Sequence[Item]) -> list[str]:
        return []

    batcher = Batcher(prepared, forgetful, Batching(), Silent())
    batcher.start()

    with pytest.raises(InferenceFailed):
        await batcher.submit([Item("a")])
    assert batcher.alive
    await batcher.close()


async def test_dead_loop_is_not_alive_and_answers_not_ready() -> None:
    class Broken(Silent):
        def batch_computed(self, report: BatchReport) -> None:
            raise RuntimeError("observer")

    device = Device()
    batcher = Batcher(prepared, device.compute, Batching(), Broken())
    batcher.start()
    last = asyncio.create_task(batcher.submit([Item("a")]))
    await device.until_busy()
    waiting = asyncio.create_task(batcher.submit([Item("b")]))
    await settle()
    device.set_free()

    assert await last == ["done a"]
    with pytest.raises(NotReady):
        await waiting
    assert not batcher.alive
    with pytest.raises(NotReady):
        await batcher.submit([Item("c")])


async def test_close_answers_what_is_computed_and_what_waits(make_bench: Make) -> None:
    bench = await make_bench(Batching())
    tasks = await bench.ask_while_busy([Item("waits")])
    await bench.batcher.close()
    answers = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(answer) for answer in answers] == [NotReady, NotReady]


async def test_not_started_is_not_ready() -> None:
    batcher = Batcher(prepared, Device().compute, Batching(), Silent())

    assert not batcher.alive
    with pytest.raises(NotReady):
        await batcher.submit([Item("a")])
    await batcher.close()


async def test_observer_is_told_sizes_tokens_padding_and_times(make_bench: Make) -> None:
    bench = await make_bench(Batching())
    tasks = await bench.ask_while_busy([Item("a", 2)], [Item("b", 6)])
    bench.clock.now += 0.5
    bench.device.set_free()
    await asyncio.gather(*tasks)

    first, second = bench.observer.reports
    assert (first.size, first.inference_seconds, list(first.queue_seconds)) == (1, 0.5, [0])
    assert (second.size, second.tokens, second.padded_tokens) == (2, 8, 12)
    assert second.padding_ratio == pytest.approx(1 / 3)
    assert list(second.queue_seconds) == [0.5, 0.5]
    assert bench.observer.depths[-1] == 0
    assert max(bench.observer.depths) == 2
