"""The batcher with trivial models, a device that the test itself sets free, and a fake clock."""

import asyncio
import gc
import math
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from structlog.typing import EventDict

from kaiten.context import RequestContext, bind
from kaiten.errors import DeadlineExceeded, InferenceFailed, OutOfMemory, QueueFull
from kaiten.serving import BatchStats
from kaiten.settings.models import BatchingSettings
from runners.batching.batcher import Batcher, Compute, Device

FIFO = BatchingSettings(max_overtakes=0)


@dataclass(frozen=True, slots=True)
class Item:
    name: str
    cost: int = 1


class ManualDevice:
    """Computes ``done NAME`` for each item, once the test lets it.

    A batch with a ``poison`` raises, one with a ``forgets`` gets a result too few, and one with a
    ``flaky`` raises the first time.
    """

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.alone: list[bool] = []
        self.computing: list[asyncio.Event] = []
        self._open = False
        self._flaky: set[str] = set()

    async def compute(self, batch: Sequence[Item], *, alone: bool) -> list[str]:
        names = [item.name for item in batch]
        self.batches.append(names)
        self.alone.append(alone)
        if not self._open:
            self.computing.append(finished := asyncio.Event())
            await finished.wait()
        return self._answers(names)

    def finish(self, number: int = 0) -> None:
        """Let one of the batches that are being computed end; 0 began first."""
        self.computing.pop(number).set()

    def set_free(self) -> None:
        """Let all batches end, those to come at once."""
        self._open = True
        while self.computing:
            self.finish()

    def occupy(self) -> None:
        self._open = False

    def _answers(self, names: Sequence[str]) -> list[str]:
        flaky = {name for name in names if name.startswith("flaky")} - self._flaky
        self._flaky |= flaky
        if flaky or any(name.startswith("poison") for name in names):
            raise ValueError(names)
        answers = [f"done {name}" for name in names]
        return answers[1:] if any(name.startswith("forgets") for name in names) else answers


class Silent:
    """An Observer that keeps nothing."""

    def queue_changed(self, items: int) -> None:
        pass

    def batch_computed(self, stats: BatchStats) -> None:
        pass

    def batch_failed(self) -> None:
        pass

    def out_of_memory(self) -> None:
        pass

    def device_hung(self) -> None:
        pass

    def items_skipped(self, *, gone: int, expired: int) -> None:
        pass


@dataclass
class Recorder(Silent):
    """Records events, and raises at the event that the test breaks."""

    reports: list[BatchStats] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    failures: int = 0
    shortages: int = 0
    hangs: int = 0
    gone: int = 0
    expired: int = 0
    broken: str = ""

    def queue_changed(self, items: int) -> None:
        self._raise_if_broken("queue_changed")
        self.depths.append(items)

    def batch_computed(self, stats: BatchStats) -> None:
        self._raise_if_broken("batch_computed")
        self.reports.append(stats)

    def out_of_memory(self) -> None:
        self.shortages += 1

    def device_hung(self) -> None:
        self.hangs += 1

    def batch_failed(self) -> None:
        self._raise_if_broken("batch_failed")
        self.failures += 1

    def items_skipped(self, *, gone: int, expired: int) -> None:
        self._raise_if_broken("items_skipped")
        self.gone += gone
        self.expired += expired

    def _raise_if_broken(self, event: str) -> None:
        if event == self.broken:
            raise RuntimeError(event)


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Door:
    """Prepares what it is given; some, by their names, once the test opens it."""

    def __init__(self, held: str = "") -> None:
        self._held = held
        self._opened = asyncio.Event()

    async def prepare(self, inputs: Sequence[Item], subject: str) -> Sequence[Item]:
        if any(item.name.startswith(self._held) for item in inputs):
            await self._opened.wait()
        if any(item.name == "unreadable" for item in inputs):
            raise UnicodeError
        return inputs

    def open(self) -> None:
        self._opened.set()


AnswerTask = asyncio.Task[Sequence[str]]
Prepare = Callable[[Sequence[Item], str], Awaitable[Sequence[Item]]]


async def return_inputs(inputs: Sequence[Item], subject: str) -> Sequence[Item]:
    return inputs


class Bench:
    """A batcher and all that it touches."""

    def __init__(
        self,
        limits: BatchingSettings,
        lanes: int = 1,
        tokens: int = 1000,
        prepare: Prepare = return_inputs,
        compute: Compute[Item, str] | None = None,
        check: Callable[[], Awaitable[None]] | None = None,
        *,
        express: bool = False,
    ) -> None:
        self.device = ManualDevice()
        self.observer = Recorder()
        self.clock = Clock()
        self.deaths: list[bool] = []
        self.batcher: Batcher[Item, Item, str] = Batcher(
            prepare,
            Device(
                compute or self.device.compute,
                lanes,
                tokens,
                express=compute or self.device.compute if express else None,
                check=check,
            ),
            limits,
            self.observer,
            on_death=lambda: self.deaths.append(True),
            clock=self.clock,
        )

    def ask(self, *items: Item, deadline: float = math.inf, subject: str = "") -> AnswerTask:
        return asyncio.create_task(self.batcher.submit(items, deadline, subject))

    async def ask_while_busy(self, *callers: Sequence[Item]) -> list[AnswerTask]:
        """Occupy one lane with a first item, queue the callers behind it, in order."""
        tasks = [self.ask(Item("first"))]
        await settle()
        tasks += [self.ask(*items) for items in callers]
        await settle()
        return tasks


class Make(Protocol):
    """Builds and starts benches, which are closed when the test ends."""

    def __call__(
        self,
        limits: BatchingSettings = FIFO,
        *,
        lanes: int = 1,
        tokens: int = 1000,
        prepare: Prepare = return_inputs,
        compute: Compute[Item, str] | None = None,
        check: Callable[[], Awaitable[None]] | None = None,
        express: bool = False,
    ) -> Bench: ...


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[EventDict]]:
    """Keep the log from the terminal, where a traceback takes longer than the test."""
    with capture_logs() as captured:
        yield captured


@pytest.fixture
async def make_bench() -> AsyncIterator[Make]:
    benches: list[Bench] = []

    def make(
        limits: BatchingSettings = FIFO,
        *,
        lanes: int = 1,
        tokens: int = 1000,
        prepare: Prepare = return_inputs,
        compute: Compute[Item, str] | None = None,
        check: Callable[[], Awaitable[None]] | None = None,
        express: bool = False,
    ) -> Bench:
        benches.append(Bench(limits, lanes, tokens, prepare, compute, check, express=express))
        benches[-1].batcher.start()
        return benches[-1]

    yield make
    for bench in benches:
        await bench.batcher.close()


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(50):
        await asyncio.sleep(0)


async def outcomes(tasks: Sequence[AnswerTask]) -> list[str | list[str]]:
    """Return each caller's results, or the name of the error that it got; all must be answered."""
    await settle()
    assert all(task.done() for task in tasks), "a caller is left hanging"
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    return [
        type(answer).__name__ if isinstance(answer, BaseException) else [*answer]
        for answer in answers
    ]


def make_items(names: str, cost: int = 1) -> list[Item]:
    return [Item(name, cost) for name in names]


async def test_idle_device_starts_at_once_with_one_item(make_bench: Make) -> None:
    bench = make_bench()
    bench.device.set_free()

    assert await bench.batcher.submit([Item("a")]) == ["done a"]
    assert bench.device.batches == [["a"]]
    assert bench.batcher.alive


async def test_request_of_nothing_is_answered_with_nothing(make_bench: Make) -> None:
    bench = make_bench()

    assert await outcomes([bench.ask()]) == [[]]
    assert bench.device.batches == []


async def test_what_arrives_while_the_device_is_busy_is_one_batch(make_bench: Make) -> None:
    bench = make_bench()
    tasks = await bench.ask_while_busy(make_items("a"), make_items("bc"), make_items("d"))
    bench.device.set_free()

    assert await outcomes(tasks) == [["done first"], ["done a"], ["done b", "done c"], ["done d"]]
    assert bench.device.batches == [["first"], ["a", "b", "c", "d"]]


async def test_what_arrives_while_all_lanes_are_busy_goes_to_the_first_free(
    make_bench: Make,
) -> None:
    bench = make_bench(lanes=2)
    tasks = await bench.ask_while_busy(make_items("a"))
    tasks += [bench.ask(*make_items("bc")), bench.ask(*make_items("d"))]
    await settle()
    assert bench.device.batches == [["first"], ["a"]]

    bench.device.finish(1)
    await settle()
    assert bench.device.batches[2:] == [["b", "c", "d"]]

    bench.device.set_free()
    assert await outcomes(tasks) == [["done first"], ["done a"], ["done b", "done c"], ["done d"]]


@pytest.mark.parametrize(
    ("lanes", "shares"),
    [
        (1, [["a", "b", "c", "d", "e"]]),
        (2, [["a", "b", "c"], ["d", "e"]]),
        (3, [["a", "b"], ["c", "d"], ["e"]]),
        (8, [["a"], ["b"], ["c"], ["d"], ["e"]]),
    ],
)
async def test_free_lanes_share_what_waits(
    make_bench: Make, lanes: int, shares: list[list[str]]
) -> None:
    bench = make_bench(lanes=lanes)
    task = bench.ask(*make_items("abcde"))
    await settle()
    assert bench.device.batches == shares

    # The lanes end in the other order than they began.
    while bench.device.computing:
        bench.device.finish(-1)
        await settle()
    assert await outcomes([task]) == [[f"done {name}" for name in "abcde"]]


async def test_lanes_share_by_length(make_bench: Make) -> None:
    bench = make_bench(BatchingSettings(), lanes=2)
    task = bench.ask(Item("a", 10), Item("b", 50), Item("c", 50), Item("d", 10))
    await settle()
    bench.device.set_free()

    assert await outcomes([task]) == [["done a", "done b", "done c", "done d"]]
    assert bench.device.batches == [["a", "d"], ["b", "c"]]


async def test_alone_is_what_neither_computes_nor_waits_beside_another(make_bench: Make) -> None:
    bench = make_bench(lanes=2)
    tasks = [bench.ask(Item("alone"))]
    await settle()
    tasks.append(bench.ask(Item("beside it")))
    await settle()
    bench.device.finish()
    await settle()
    tasks.append(bench.ask(Item("beside the second")))
    await settle()
    bench.device.set_free()
    await settle()
    tasks.append(bench.ask(Item("a"), Item("b")))
    await settle()
    tasks.append(bench.ask(Item("alone again")))
    await outcomes(tasks)

    assert [*zip(bench.device.batches, bench.device.alone, strict=True)] == [
        (["alone"], True),
        (["beside it"], False),
        (["beside the second"], False),
        (["a"], False),
        # By now the device has done "a".
        (["b"], True),
        (["alone again"], True),
    ]


async def test_a_batch_before_others_that_wait_is_not_alone(make_bench: Make) -> None:
    bench = make_bench(BatchingSettings(max_batch_items=2))
    task = bench.ask(*make_items("abc"))
    bench.device.set_free()
    await outcomes([task])

    assert bench.device.batches == [["a", "b"], ["c"]]
    assert bench.device.alone == [False, True]


async def test_halves_of_a_failed_batch_are_not_alone(make_bench: Make) -> None:
    bench = make_bench()
    task = bench.ask(Item("flaky"), Item("b"))
    bench.device.set_free()

    assert await outcomes([task]) == [["done flaky", "done b"]]
    assert bench.device.alone == [True, False, False]


@pytest.mark.parametrize(
    ("setting", "batches"),
    [
        (None, [["a", "b", "c"], ["d"]]),
        (20, [["a", "b"], ["c", "d"]]),
        (99, [["a", "b", "c", "d"]]),
    ],
)
async def test_token_budget_is_the_device_s_unless_set(
    make_bench: Make, setting: int | None, batches: list[list[str]]
) -> None:
    bench = make_bench(BatchingSettings(max_batch_tokens=setting), tokens=30)
    task = bench.ask(*make_items("abcd", cost=10))
    bench.device.set_free()
    await outcomes([task])

    assert bench.device.batches == batches


async def test_item_over_the_budget_goes_alone(make_bench: Make) -> None:
    bench = make_bench(BatchingSettings(max_batch_tokens=8, max_overtakes=0))
    task = bench.ask(Item("a", 2), Item("huge", 50), Item("b", 2))
    bench.device.set_free()

    assert await outcomes([task]) == [["done a", "done huge", "done b"]]
    assert bench.device.batches == [["a"], ["huge"], ["b"]]


async def test_large_request_is_split_by_count_and_joined_in_order(make_bench: Make) -> None:
    bench = make_bench(BatchingSettings(max_batch_items=2, max_padding_ratio=0))
    lengths = [3, 1, 3, 2, 1, 2, 1]
    task = bench.ask(*(Item(str(index), cost) for index, cost in enumerate(lengths)))
    bench.device.set_free()

    assert await outcomes([task]) == [[f"done {index}" for index in range(7)]]
    assert bench.device.batches == [["0", "2"], ["1", "4"], ["3", "5"], ["6"]]


async def test_more_than_are_looked_at_are_all_served(make_bench: Make) -> None:
    bench = make_bench(BatchingSettings(max_queue_items=700))
    task = bench.ask(*(Item(str(index), 1 + index % 7) for index in range(700)))
    bench.device.set_free()

    assert await outcomes([task]) == [[f"done {index}" for index in range(700)]]


async def test_what_was_served_is_let_go(make_bench: Make) -> None:
    class Watched(Item):
        """Unlike an Item with slots, it may be referred to weakly."""

    bench = make_bench()
    bench.device.set_free()
    item = Watched("a")
    reference = weakref.ref(item)
    await bench.batcher.submit([item])
    # What the lane did last, it may hold until it does the next.
    await bench.batcher.submit([Item("b")])
    del item
    gc.collect()

    assert reference() is None


async def test_who_is_overtaken_often_enough_goes_next(make_bench: Make) -> None:
    bench = make_bench(BatchingSettings(max_batch_items=4, max_overtakes=2))
    lengths = [10, 50, 90, 130, *[10] * 3, *[50] * 3, *[90] * 3, *[130] * 3]
    task = bench.ask(*(Item(f"{number}: {cost}", cost) for number, cost in enumerate(lengths)))
    bench.device.set_free()
    await outcomes([task])

    # After two batches that it was their turn for, 90 and 130 go together, padded as they are.
    costs_by_batch = [[name.split(": ")[1] for name in batch] for batch in bench.device.batches]
    assert costs_by_batch == [["10"] * 4, ["50"] * 4, ["90", "130"], ["90"] * 3, ["130"] * 3]


async def test_who_is_far_back_in_a_long_queue_is_not_late(make_bench: Make) -> None:
    bench = make_bench(BatchingSettings(max_batch_items=4, max_overtakes=3))
    task = bench.ask(
        *(Item(f"{number}: {number % 2}", 10 + 80 * (number % 2)) for number in range(80))
    )
    bench.device.set_free()
    await outcomes([task])

    # Twenty batches, and in each of them one length.
    kinds_by_batch = [{name.split(": ")[1] for name in batch} for batch in bench.device.batches]
    assert [len(kinds) for kinds in kinds_by_batch] == [1] * 20


HEAVY = [Item(f"h{number}", 10) for number in range(20)]


async def test_light_subject_is_in_the_next_batch_whatever_heavy_ones_have_waiting(
    make_bench: Make,
) -> None:
    bench = make_bench(BatchingSettings(max_batch_items=4, max_queue_items=40))
    tasks = [bench.ask(*HEAVY, subject=name) for name in ("a", "b", "c")]
    await settle()
    light = bench.ask(Item("light", 1), subject="light")
    await settle()
    bench.device.finish()
    await settle()

    # Alone, since nothing else is as short.
    assert bench.device.batches[1:] == [["light"]]
    bench.device.set_free()
    assert (await outcomes([*tasks, light]))[-1] == ["done light"]


async def test_light_subject_that_asks_again_at_once_is_still_next(make_bench: Make) -> None:
    bench = make_bench(BatchingSettings(max_batch_items=4, max_queue_items=80))
    tasks = [bench.ask(*HEAVY, *HEAVY, subject=name) for name in "abcdefgh"[:3]]
    await settle()
    for number in range(10):
        tasks.append(bench.ask(Item(f"light {number}", 1), subject="light"))
        await settle()
        for _ in range(2):
            bench.device.finish()
            await settle()
        assert tasks[-1].done() or bench.device.batches[-1] == [f"light {number}"]
    bench.device.set_free()
    await outcomes(tasks)


async def test_heavy_subjects_share_by_cost(make_bench: Make) -> None:
    bench = make_bench(BatchingSettings(max_batch_items=4, max_queue_items=400))
    tasks = [
        bench.ask(*(Item(f"{name} {number}", cost) for number in range(120)), subject=name)
        for name, cost in (("short", 10), ("long", 30))
    ]
    await settle()
    for _ in range(32):
        bench.device.finish()
        await settle()
    names = [name.split()[0] for batch in bench.device.batches for name in batch]
    # By cost, within what one batch may hold.
    assert abs(10 * names.count("short") - 30 * names.count("long")) <= 1000
    assert names.count("short") > 2 * names.count("long")
    bench.device.set_free()
    await outcomes(tasks)


async def test_light_subject_is_admitted_where_heavy_ones_fill_the_queue(make_bench: Make) -> None:
    bench = make_bench(BatchingSettings(max_queue_items=20))
    tasks = [bench.ask(Item("first"), subject="heavy")]
    await settle()
    tasks.append(bench.ask(*HEAVY, subject="heavy"))
    await settle()
    refused = [bench.ask(*HEAVY, subject=name) for name in ("heavy", "other heavy")]
    light = bench.ask(*make_items("abc"), subject="light")
    await settle()

    assert bench.batcher.retry_after_s("light", 1, math.inf) is None
    bench.device.set_free()
    assert await outcomes([*refused, light]) == [
        "QueueFull",
        "QueueFull",
        ["done a", "done b", "done c"],
    ]
    await outcomes(tasks)


async def test_subject_whose_request_would_be_refused_gets_a_retry_after(make_bench: Make) -> None:
    bench = make_bench(BatchingSettings(max_queue_items=20))
    tasks = await bench.ask_while_busy(HEAVY)

    assert bench.batcher.retry_after_s("", 1, math.inf) == bench.batcher.queue_delay_s
    bench.device.set_free()
    await outcomes(tasks)
    assert bench.batcher.retry_after_s("", 1, math.inf) is None


async def test_inputs_ahead_of_a_request_wait_as_well(make_bench: Make) -> None:
    bench = make_bench(BatchingSettings(max_queue_items=20))
    slow = bench.ask(Item("slow"))
    await settle()
    bench.clock.now += 1.0  # the pace: a second an item
    bench.device.finish()
    await slow
    tasks = [bench.ask(Item("first"))]
    await settle()
    tasks.append(bench.ask(Item("second")))
    await settle()
    # One waits; of ten seconds, seven may be waited for.
    retry_after_s = partial(bench.batcher.retry_after_s, "", 1, bench.clock.now + 10)
    assert retry_after_s(ahead=6) is None
    assert retry_after_s(ahead=7) is not None
    retry_after_s = partial(bench.batcher.retry_after_s, "", 1, math.inf)
    assert retry_after_s(ahead=18) is None
    assert retry_after_s(ahead=19) is not None
    bench.device.set_free()
    await outcomes(tasks)


@pytest.mark.parametrize(("subject", "admitted"), [("heavy", False), ("light", True)])
async def test_deadline_is_held_against_the_subjects_own_share(
    make_bench: Make, subject: str, *, admitted: bool
) -> None:
    bench = make_bench()
    slow = bench.ask(Item("slow"))
    await settle()
    bench.clock.now += 1.0  # the pace: a second an item
    bench.device.finish()
    await slow
    tasks = [bench.ask(Item("first"), subject="heavy")]
    await settle()
    tasks.append(bench.ask(*make_items("abcdefgh"), subject="heavy"))
    await settle()
    task = bench.ask(Item("x"), deadline=bench.clock.now + 4, subject=subject)
    await settle()

    assert task.done() is not admitted
    bench.device.set_free()
    await outcomes([*tasks, task])


async def slow_device(make_bench: Make) -> Bench:
    """Return a bench whose pace is 16 tokens in half a second; a batch has at most 48."""
    bench = make_bench(tokens=48)
    first = bench.ask(Item("first", 16), subject="first")
    await settle()
    bench.clock.now += 0.5
    bench.device.finish()
    await first
    return bench


async def sizes_beside(bench: Bench, other: Item) -> set[int]:
    """Return the sizes of a heavy subject's batches that are taken while another item waits."""
    heavy = [bench.ask(*make_items("abcdefgh", cost=8), subject="heavy")]
    await settle()
    heavy.append(bench.ask(*make_items("ijklmnopqrstuvwx", cost=8), subject="heavy"))
    heavy.append(bench.ask(other, subject="other"))
    await settle()
    batch_count = len(bench.device.batches)
    bench.device.set_free()
    await outcomes(heavy)
    return {len(batch) for batch in bench.device.batches[batch_count:] if other.name not in batch}


async def test_batches_are_short_while_light_and_heavy_subjects_share_a_slow_device(
    make_bench: Make,
) -> None:
    bench = await slow_device(make_bench)
    assert max(await sizes_beside(bench, Item("light", 12))) == 1

    bench.clock.now += 60
    assert await bench.batcher.submit(make_items("abcdef", cost=8), subject="heavy")
    assert len(bench.device.batches[-1]) == 6


async def test_batches_are_full_where_only_heavy_subjects_share_a_slow_device(
    make_bench: Make,
) -> None:
    bench = await slow_device(make_bench)
    assert max(await sizes_beside(bench, Item("heavy too", 13))) == 6


async def test_light_subjects_alone_share_full_batches_on_a_slow_device(make_bench: Make) -> None:
    bench = await slow_device(make_bench)
    tasks = [bench.ask(Item("first", 3), subject="first")]
    await settle()
    tasks += [bench.ask(Item(f"{n}", 3), subject=f"light {n}") for n in range(32)]
    await settle()
    bench.device.set_free()
    await outcomes(tasks)
    assert [len(batch) for batch in bench.device.batches[1:]] == [1, 16, 16]


async def test_light_subjects_share_the_batch_before_a_heavy_one(make_bench: Make) -> None:
    bench = await slow_device(make_bench)
    tasks = [bench.ask(*make_items("abcdefgh", cost=8), subject="heavy")]
    await settle()
    tasks.append(bench.ask(*make_items("ijklmnopqrstuvwx", cost=8), subject="heavy"))
    tasks += [bench.ask(Item(f"{n}", 3), subject=f"light {n}") for n in range(4)]
    await settle()
    bench.device.finish()
    await settle()
    assert bench.device.batches[-1] == [f"{n}" for n in range(4)]
    bench.device.set_free()
    await outcomes(tasks)


async def test_batch_of_a_light_subject_is_not_filled_up_on_a_slow_device(
    make_bench: Make,
) -> None:
    bench = make_bench(tokens=48)
    slow = bench.ask(Item("a", 16), subject="light")
    await settle()
    bench.clock.now += 0.5
    bench.device.finish()
    await slow
    heavy = [bench.ask(*make_items("ab", cost=2), *make_items("cd", cost=2), subject="heavy")]
    await settle()
    heavy.append(bench.ask(*make_items("efgh", cost=2), subject="heavy"))
    light = bench.ask(Item("light", 2), subject="light")
    await settle()
    bench.device.finish()
    await settle()
    assert bench.device.batches[-1] == ["light"]
    bench.device.set_free()
    await outcomes([*heavy, light])


@pytest.fixture
async def express(make_bench: Make) -> AsyncIterator[tuple[Bench, list[AnswerTask]]]:
    """Two busy lanes and an express lane, behind which a heavy subject has a batch and more."""
    bench = make_bench(lanes=2, tokens=48, express=True)
    tasks = [bench.ask(Item("a", 8), subject="heavy")]
    await settle()
    tasks.append(bench.ask(*make_items("bcdefg", cost=8), subject="heavy"))
    await settle()
    tasks.append(bench.ask(*make_items("hijklmnopqrs", cost=8), subject="heavy"))
    await settle()
    assert bench.device.batches == [["a"], [*"bcdefg"]]
    yield bench, tasks
    bench.device.set_free()
    await outcomes(tasks)


async def test_light_subject_does_not_wait_for_a_lane_of_heavy_ones(
    express: tuple[Bench, list[AnswerTask]],
) -> None:
    bench, tasks = express
    tasks.append(bench.ask(*make_items("12", cost=3), subject="light"))
    await settle()
    assert bench.device.batches[2:] == [["1", "2"]]
    # One batch at a time, of light subjects.
    tasks += [bench.ask(Item(f"{n}", 5), subject=f"light {n}") for n in "345"]
    await settle()
    assert len(bench.device.computing) == 3
    bench.device.finish(2)
    await settle()
    assert bench.device.batches[3:] == [["3", "4"]]
    bench.device.finish(2)
    await settle()
    assert bench.device.batches[4:] == [["5"]]
    # Heavy batches are full.
    bench.device.finish(0)
    await settle()
    assert bench.device.batches[5:] == [[*"hijklm"]]


async def test_express_lane_is_not_for_heavy_subjects(
    express: tuple[Bench, list[AnswerTask]],
) -> None:
    bench, tasks = express
    tasks.append(bench.ask(*make_items("123", cost=5), subject="heavy too"))
    await settle()
    assert len(bench.device.computing) == 2


async def test_express_lane_is_not_for_light_subjects_among_themselves(make_bench: Make) -> None:
    bench = make_bench(tokens=48, express=True)
    tasks = [bench.ask(Item("first", 3), subject="first")]
    await settle()
    tasks += [bench.ask(Item(f"{n}", 3), subject=f"light {n}") for n in range(32)]
    await settle()
    assert len(bench.device.computing) == 1
    bench.device.set_free()
    await outcomes(tasks)
    assert [len(batch) for batch in bench.device.batches] == [1, 16, 16]


async def test_who_has_left_takes_no_express_lane(express: tuple[Bench, list[AnswerTask]]) -> None:
    bench, _ = express
    light = bench.ask(Item("light", 3), subject="light")
    light.cancel()
    await settle()
    assert len(bench.device.computing) == 2


async def test_reserve_receives_the_cost_and_may_refuse(make_bench: Make) -> None:
    bench = make_bench()
    bench.device.set_free()
    reserved: list[int] = []

    async def reserve(cost: int) -> None:
        reserved.append(cost)
        if cost > 10:
            raise PermissionError

    assert await bench.batcher.submit(make_items("ab", cost=5), reserve=reserve)
    with pytest.raises(PermissionError):
        await bench.batcher.submit(make_items("abc", cost=5), reserve=reserve)
    assert reserved == [10, 15]
    assert bench.device.batches == [["a", "b"]]
    assert bench.observer.depths[-1] == 0


async def test_full_queue_refuses_the_whole_request(make_bench: Make) -> None:
    bench = make_bench(BatchingSettings(max_queue_items=3))
    tasks = await bench.ask_while_busy(make_items("ab"))

    with pytest.raises(QueueFull):
        await bench.batcher.submit(make_items("cd"))
    fits = bench.ask(Item("e"))
    await settle()
    bench.device.set_free()

    assert await outcomes([*tasks, fits]) == [["done first"], ["done a", "done b"], ["done e"]]
    assert bench.device.batches == [["first"], ["a", "b", "e"]]


async def test_what_waits_to_be_prepared_counts_as_waiting(make_bench: Make) -> None:
    door = Door()
    bench = make_bench(BatchingSettings(max_queue_items=3), prepare=door.prepare)
    bench.device.set_free()
    tasks = [bench.ask(*make_items("ab")), bench.ask(*make_items("c"))]
    await settle()
    with pytest.raises(QueueFull):
        await bench.batcher.submit(make_items("d"))
    door.open()

    assert await outcomes(tasks) == [["done a", "done b"], ["done c"]]
    assert bench.observer.depths[-1] == 0


async def test_room_is_given_back_by_who_leaves_or_can_not_be_prepared(make_bench: Make) -> None:
    door = Door()
    bench = make_bench(BatchingSettings(max_queue_items=3), prepare=door.prepare)
    bench.device.set_free()
    leaves, fails = bench.ask(*make_items("ab")), bench.ask(Item("unreadable"))
    await settle()
    leaves.cancel()
    await settle()
    stays = bench.ask(*make_items("cd"))
    await settle()
    door.open()

    assert await outcomes([leaves, fails, stays]) == [
        "CancelledError",
        "UnicodeError",
        ["done c", "done d"],
    ]
    assert await outcomes([bench.ask(*make_items("efg"))]) == [["done e", "done f", "done g"]]
    assert bench.observer.gone == 0


@pytest.mark.parametrize("leaves", [False, True])
async def test_who_was_never_queued_waits_no_longer(make_bench: Make, *, leaves: bool) -> None:
    door = Door(held="unreadable")
    bench = make_bench(prepare=door.prepare)
    bench.device.set_free()
    tasks = [bench.ask(Item("unreadable")), bench.ask(Item("a"))]
    await settle()
    assert bench.observer.depths[-1] == 1
    if leaves:
        tasks[0].cancel()
    door.open()

    assert await outcomes(tasks) == ["CancelledError" if leaves else "UnicodeError", ["done a"]]
    assert bench.observer.depths[-1] == 0


async def test_caller_who_leaves_before_it_began_takes_no_room(make_bench: Make) -> None:
    bench = make_bench(BatchingSettings(max_queue_items=1))
    leaves = bench.ask(Item("a"))
    leaves.cancel()
    bench.device.set_free()

    assert await outcomes([leaves, bench.ask(Item("b"))]) == ["CancelledError", ["done b"]]
    assert bench.device.batches == [["b"]]


@pytest.mark.parametrize(("lanes", "retry_after_s"), [(1, 6), (2, 3)])
async def test_retry_after_follows_the_measured_pace(
    make_bench: Make, lanes: int, retry_after_s: int
) -> None:
    bench = make_bench(BatchingSettings(max_queue_items=4), lanes=lanes)
    slow = bench.ask(Item("slow"))
    await settle()
    bench.clock.now += 2.0  # one item took one lane two seconds
    bench.device.finish()
    await slow
    waiting = [bench.ask(Item("busy")) for _ in range(lanes)]
    await settle()
    waiting.append(bench.ask(*make_items("abc")))
    await settle()

    with pytest.raises(QueueFull) as refusal:
        await bench.batcher.submit(make_items("de"))
    assert refusal.value.retry_after_s == bench.batcher.queue_delay_s == retry_after_s
    bench.device.set_free()
    await outcomes(waiting)
    assert bench.batcher.queue_delay_s == 1


@pytest.mark.parametrize(
    ("waiting", "patience", "admitted"),
    [(2, 5.8, True), (2, 5.6, False), (2, math.inf, True), (1, 2.9, True), (0, 0.1, True)],
)
async def test_call_that_would_wait_for_most_of_its_time_is_refused(
    make_bench: Make, waiting: int, patience: float, *, admitted: bool
) -> None:
    bench = make_bench()
    slow = bench.ask(Item("slow"))
    await settle()
    bench.clock.now += 2.0  # the pace: two seconds an item
    bench.device.finish()
    await slow
    tasks = await bench.ask_while_busy(*([Item(f"w{number}")] for number in range(waiting)))
    task = bench.ask(Item("a"), deadline=bench.clock.now + patience)
    await settle()

    assert task.done() is not admitted
    bench.device.set_free()
    (answer,) = await outcomes([task])
    assert answer == (["done a"] if admitted else "QueueFull")
    await outcomes(tasks)


async def test_newest_batch_weighs_a_tenth_in_the_pace(make_bench: Make) -> None:
    bench = make_bench()
    for seconds in (10.0, 20.0):
        task = bench.ask(Item("a"))
        await settle()
        bench.clock.now += seconds
        bench.device.finish()
        await task
    tasks = await bench.ask_while_busy(make_items("a"))

    assert bench.batcher.queue_delay_s == 11
    bench.device.set_free()
    await outcomes(tasks)


async def test_caller_who_is_gone_is_not_computed_and_is_counted(make_bench: Make) -> None:
    bench = make_bench()
    first, gone, stays = await bench.ask_while_busy(make_items("xy"), make_items("a"))
    gone.cancel()
    bench.device.set_free()

    assert await outcomes([first, gone, stays]) == [["done first"], "CancelledError", ["done a"]]
    assert bench.device.batches == [["first"], ["a"]]
    assert (bench.observer.gone, bench.observer.expired) == (2, 0)
    assert bench.observer.depths[-1] == 0


async def test_queue_of_only_gone_callers_does_not_stop_the_lane(make_bench: Make) -> None:
    bench = make_bench()
    first, gone = await bench.ask_while_busy(make_items("x"))
    gone.cancel()
    bench.device.set_free()
    await outcomes([first, gone])

    assert await bench.batcher.submit([Item("next")]) == ["done next"]
    assert bench.device.batches == [["first"], ["next"]]


async def test_caller_who_leaves_while_computed_harms_nobody(make_bench: Make) -> None:
    bench = make_bench()
    leaves, stays = bench.ask(Item("a")), bench.ask(Item("b"))
    await settle()
    leaves.cancel()
    bench.device.set_free()

    assert await outcomes([leaves, stays]) == ["CancelledError", ["done b"]]
    assert bench.batcher.alive


async def test_item_past_its_deadline_is_refused_counted_and_not_computed(make_bench: Make) -> None:
    bench = make_bench()
    first = bench.ask(Item("first"))
    await settle()
    late = bench.ask(*make_items("xy"), deadline=103.0)
    in_time = bench.ask(Item("a"), deadline=103.5)
    await settle()
    bench.clock.now = 103.0
    bench.device.set_free()

    assert await outcomes([first, late, in_time]) == [
        ["done first"],
        "DeadlineExceeded",
        ["done a"],
    ]
    assert bench.device.batches == [["first"], ["a"]]
    assert (bench.observer.gone, bench.observer.expired) == (0, 2)
    with pytest.raises(DeadlineExceeded) as refusal:
        await late
    # At three seconds an item, and one of them still waiting.
    assert refusal.value.retry_after_s == 3
    assert bench.observer.depths[-1] == 0


async def test_what_began_before_its_deadline_is_answered_after_it(make_bench: Make) -> None:
    bench = make_bench()
    task = bench.ask(Item("a"), deadline=101.0)
    await settle()
    bench.clock.now = 200.0
    bench.device.set_free()

    assert await outcomes([task]) == [["done a"]]


async def test_call_of_which_a_part_is_late_is_refused_as_a_whole(make_bench: Make) -> None:
    bench = make_bench(BatchingSettings(max_batch_items=1))
    task = bench.ask(*make_items("abc"), deadline=101.0)
    await settle()
    bench.clock.now = 101.0
    bench.device.set_free()

    assert await outcomes([task]) == ["DeadlineExceeded"]
    assert bench.device.batches == [["a"]]
    assert bench.observer.expired == 2


@pytest.mark.parametrize("failure", ["poison", "forgets"])
@pytest.mark.parametrize("position", range(7))
async def test_failing_item_fails_its_own_caller_alone(
    make_bench: Make, failure: str, position: int
) -> None:
    bench = make_bench()
    names = [f"{failure if index == position else 'good'} {index}" for index in range(7)]
    tasks = await bench.ask_while_busy(*([Item(name)] for name in names))
    bench.device.set_free()

    assert await outcomes(tasks[1:]) == [
        "InferenceFailed" if index == position else [f"done {name}"]
        for index, name in enumerate(names)
    ]
    assert bench.device.batches[1] == names
    assert bench.batcher.alive
    # The batch, and each half of a half with the item in it, down to the item itself.
    assert bench.observer.failures == sum(
        names[position] in batch for batch in bench.device.batches
    )
    assert 3 <= bench.observer.failures <= 4


@pytest.mark.parametrize("positions", [(0, 1), (0, 7), (2, 3, 4), (0, 2, 4, 6), tuple(range(8))])
async def test_several_failing_items_fail_their_own_callers_alone(
    make_bench: Make, positions: tuple[int, ...]
) -> None:
    bench = make_bench()
    names = [f"{'poison' if index in positions else 'good'} {index}" for index in range(8)]
    tasks = [bench.ask(Item(name)) for name in names]
    bench.device.set_free()

    assert await outcomes(tasks) == [
        "InferenceFailed" if index in positions else [f"done {name}"]
        for index, name in enumerate(names)
    ]
    assert await bench.batcher.submit([Item("next")]) == ["done next"]


async def test_batch_that_fails_once_is_answered_in_its_halves(make_bench: Make) -> None:
    bench = make_bench()
    tasks = [bench.ask(Item(name)) for name in ("flaky", "b", "c", "d")]
    bench.device.set_free()

    assert await outcomes(tasks) == [["done flaky"], ["done b"], ["done c"], ["done d"]]
    assert bench.device.batches == [["flaky", "b", "c", "d"], ["flaky", "b"], ["c", "d"]]
    assert bench.observer.failures == 1
    assert [report.items for report in bench.observer.reports] == [2, 2]


async def test_what_is_left_of_a_failed_call_is_not_computed(make_bench: Make) -> None:
    bench = make_bench(BatchingSettings(max_batch_items=4))
    failed = bench.ask(Item("poison"), *make_items("abcdef"))
    other = bench.ask(Item("other"))
    bench.device.set_free()

    assert await outcomes([failed, other]) == ["InferenceFailed", ["done other"]]
    # The poison is found in the first half; the second, and the second batch, are its own call's.
    assert bench.device.batches == [
        ["poison", "a", "b", "c"],
        ["poison", "a"],
        ["poison"],
        ["other"],
    ]
    assert bench.observer.gone == 3


async def test_who_leaves_a_failed_batch_is_not_computed_again(make_bench: Make) -> None:
    bench = make_bench()
    tasks = [bench.ask(Item(name)) for name in ("poison", "leaves", "stays")]
    await settle()
    tasks[1].cancel()
    bench.device.set_free()

    assert await outcomes(tasks) == ["InferenceFailed", "CancelledError", ["done stays"]]
    assert bench.device.batches[1:] == [["poison"], ["stays"]]


async def test_log_of_a_failure_holds_no_text(make_bench: Make, logs: list[EventDict]) -> None:
    bench = make_bench()
    bench.device.set_free()
    bind(RequestContext("of-the-caller"))
    await outcomes([bench.ask(Item("poison in private"), Item("beside it"))])

    # The exception's message is left out by monitors.logging.setup.
    assert logs == [
        {"event": "batch_failed", "size": 2, "log_level": "warning"},
        {
            "event": "item_failed",
            "request_id": "of-the-caller",
            "exc_info": True,
            "log_level": "error",
        },
    ]


async def test_many_failures_in_a_row_are_the_items_own_where_the_device_works(
    make_bench: Make,
) -> None:
    checks: list[None] = []

    async def works() -> None:
        checks.append(None)

    bench = make_bench(BatchingSettings(max_batch_items=1), check=works)
    bench.device.set_free()
    poisoned = [Item("poison") for _ in range(16)]
    assert await outcomes([bench.ask(item) for item in poisoned]) == ["InferenceFailed"] * 16
    assert len(checks) == 2
    assert bench.batcher.alive
    assert bench.deaths == []


async def test_an_answer_in_between_takes_the_doubt_away(make_bench: Make) -> None:
    async def never() -> None:
        raise AssertionError

    bench = make_bench(BatchingSettings(max_batch_items=1), check=never)
    bench.device.set_free()
    names = (["poison"] * 7 + ["good"]) * 3
    answers = await outcomes([bench.ask(Item(name)) for name in names])
    assert answers.count("InferenceFailed") == 21
    assert bench.batcher.alive


async def test_device_that_fails_its_check_ends_the_batcher(make_bench: Make) -> None:
    async def fails() -> None:
        raise RuntimeError("device-side assert")

    bench = make_bench(BatchingSettings(max_batch_items=1), check=fails)
    bench.device.set_free()
    answers = await outcomes([bench.ask(Item("poison")) for _ in range(10)])
    assert answers == ["InferenceFailed"] * 8 + ["NotReady"] * 2
    assert bench.deaths == [True]


@dataclass
class Tight:
    """Computes at once what fits into so many padded tokens."""

    tokens: int
    computed: list[list[str]] = field(default_factory=list)

    async def compute(self, batch: Sequence[Item], *, alone: bool) -> list[str]:
        if max(item.cost for item in batch) * len(batch) > self.tokens:
            raise OutOfMemory
        self.computed.append([item.name for item in batch])
        return [f"done {item.name}" for item in batch]


async def test_batch_that_memory_lacks_for_is_halved_and_answered(
    make_bench: Make, logs: list[EventDict]
) -> None:
    device = Tight(tokens=20)
    bench = make_bench(compute=device.compute)

    assert await outcomes([bench.ask(*make_items("abcdefgh", 10))]) == [
        [f"done {name}" for name in "abcdefgh"]
    ]
    assert device.computed == [["a", "b"], ["c", "d"], ["e", "f"], ["g", "h"]]
    # 80 tokens, and both halves of 40.
    assert (bench.observer.shortages, bench.observer.failures) == (3, 0)
    assert [(log["event"], log["batch_tokens"]) for log in logs] == [
        ("out_of_memory", 40),
        ("out_of_memory", 20),
        ("out_of_memory", 20),
    ]


async def test_later_batches_are_as_small_as_memory_allows(make_bench: Make) -> None:
    device = Tight(tokens=20)
    bench = make_bench(compute=device.compute)
    await outcomes([bench.ask(*make_items("abcd", 10))])
    shortages = bench.observer.shortages

    await outcomes([bench.ask(*make_items("efgh", 10))])
    assert device.computed[2:] == [["e", "f"], ["g", "h"]]
    assert bench.observer.shortages == shortages


async def test_item_that_memory_lacks_for_fails_alone_and_the_budget_stays(
    make_bench: Make,
) -> None:
    device = Tight(tokens=20)
    bench = make_bench(BatchingSettings(max_batch_tokens=20), compute=device.compute)

    assert await outcomes([bench.ask(Item("large", 30))]) == ["InferenceFailed"]
    assert await outcomes([bench.ask(*make_items("ab", 10))]) == [["done a", "done b"]]
    assert device.computed == [["a", "b"]]
    assert bench.observer.shortages == 1


async def test_results_that_are_none_at_all_are_a_failure(make_bench: Make) -> None:
    async def nothing(batch: Sequence[Item], *, alone: bool) -> list[str]:
        return None  # type: ignore[return-value]

    bench = make_bench(compute=nothing)

    assert await outcomes([bench.ask(Item("a"))]) == ["InferenceFailed"]
    assert bench.batcher.alive


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize(
    ("broken", "last", "answer"),
    [
        ("batch_computed", "last", ["done last"]),
        ("batch_failed", "poison", "NotReady"),
        ("queue_changed", "last", ["done last"]),
        ("items_skipped", "last", ["done last"]),
    ],
)
async def test_broken_observer_ends_the_batcher_and_answers_all(
    make_bench: Make, lanes: int, broken: str, last: str, answer: str | list[str]
) -> None:
    bench = make_bench(BatchingSettings(max_batch_items=1), lanes=lanes)
    tasks = [bench.ask(Item(last))]
    await settle()
    tasks += [bench.ask(Item(name)) for name in ("a", "leaves", "b", "c")]
    await settle()
    tasks[2].cancel()
    bench.observer.broken = broken
    bench.device.finish()

    assert await outcomes(tasks) == [answer, "NotReady", "CancelledError", *["NotReady"] * 2]
    assert not bench.batcher.alive
    assert bench.deaths == [True]
    assert await outcomes([bench.ask(Item("e"))]) == ["NotReady"]
    await bench.batcher.close()
    assert bench.deaths == [True]


async def test_lanes_that_die_at_once_are_one_death(make_bench: Make) -> None:
    bench = make_bench(lanes=2)
    tasks = [bench.ask(*make_items("ab"))]
    await settle()
    tasks.append(bench.ask(Item("waits")))
    await settle()
    bench.observer.broken = "batch_computed"
    bench.device.set_free()

    assert await outcomes(tasks) == [["done a", "done b"], "NotReady"]
    assert bench.deaths == [True]


async def test_lanes_end_with_the_first_that_dies(make_bench: Make) -> None:
    bench = make_bench(lanes=3)
    task = bench.ask(*make_items("ab"))
    await settle()
    bench.observer.broken = "batch_computed"
    bench.device.finish()

    assert await outcomes([task]) == ["NotReady"]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_death_while_a_batch_is_taken_answers_who_was_taken(make_bench: Make) -> None:
    bench = make_bench()
    tasks = await bench.ask_while_busy(make_items("a"), make_items("b"))
    bench.observer.broken = "queue_changed"
    bench.device.set_free()

    assert await outcomes(tasks) == [["done first"], "NotReady", "NotReady"]
    assert bench.deaths == [True]


async def test_death_while_an_item_is_queued_answers_who_waits(make_bench: Make) -> None:
    bench = make_bench()
    bench.observer.broken = "queue_changed"

    assert await outcomes([bench.ask(Item("a"))]) == ["RuntimeError"]
    assert bench.deaths == [True]
    assert bench.device.batches == []


async def test_death_in_a_half_of_a_failed_batch_answers_the_other_half(make_bench: Make) -> None:
    bench = make_bench()
    tasks = [bench.ask(Item(name)) for name in ("a", "b", "poison", "c")]
    await settle()
    bench.observer.broken = "batch_computed"
    bench.device.set_free()

    assert await outcomes(tasks) == [["done a"], ["done b"], "NotReady", "NotReady"]
    assert bench.deaths == [True]


async def test_death_answers_who_is_still_being_prepared(make_bench: Make) -> None:
    door = Door()
    bench = make_bench(prepare=door.prepare)
    task = bench.ask(Item("a"))
    await settle()
    await bench.batcher.close()
    door.open()

    assert await outcomes([task]) == ["NotReady"]


async def test_computation_that_is_cancelled_from_within_is_a_death(make_bench: Make) -> None:
    async def cancelled(batch: Sequence[Item], *, alone: bool) -> list[str]:
        raise asyncio.CancelledError

    bench = make_bench(lanes=2, compute=cancelled)

    assert await outcomes([bench.ask(Item("a"))]) == ["NotReady"]
    assert not bench.batcher.alive
    assert bench.deaths == [True]


@pytest.mark.parametrize("lanes", [1, 2])
async def test_close_answers_what_is_computed_and_what_waits(make_bench: Make, lanes: int) -> None:
    bench = make_bench(BatchingSettings(max_batch_items=1), lanes=lanes)
    tasks = await bench.ask_while_busy(make_items("ab"), make_items("c"))
    await bench.batcher.close()

    assert await outcomes(tasks) == ["NotReady"] * 3
    assert await outcomes([bench.ask(Item("d"))]) == ["NotReady"]
    assert not bench.batcher.alive
    assert bench.deaths == []


async def test_not_started_is_not_ready() -> None:
    bench = Bench(FIFO)

    assert not bench.batcher.alive
    assert await outcomes([bench.ask(Item("a"))]) == ["NotReady"]
    await bench.batcher.close()
    assert bench.deaths == []


async def test_item_without_a_price_fails_its_own_caller_alone(make_bench: Make) -> None:
    bench = make_bench()
    first, priceless, last = await bench.ask_while_busy([Item("bad", "none")], make_items("a"))  # type: ignore[arg-type]
    bench.device.set_free()

    assert await outcomes([first, priceless, last]) == [["done first"], "TypeError", ["done a"]]
    assert bench.device.batches == [["first"], ["a"]]
    assert bench.batcher.alive


async def test_items_that_cost_nothing_share_a_batch(make_bench: Make) -> None:
    bench = make_bench(tokens=1)
    task = bench.ask(*make_items("abc", cost=0))
    bench.device.set_free()

    assert await outcomes([task]) == [["done a", "done b", "done c"]]
    assert bench.device.batches == [["a", "b", "c"]]


async def test_observer_receives_sizes_tokens_padding_and_times(make_bench: Make) -> None:
    bench = make_bench()
    tasks = await bench.ask_while_busy([Item("a", 2)])
    bench.clock.now += 0.25
    tasks.append(bench.ask(Item("b", 6)))
    await settle()
    bench.clock.now += 0.25
    bench.device.set_free()
    await outcomes(tasks)

    first, second = bench.observer.reports
    assert (first.items, first.inference_s, list(first.queue_delays_s)) == (1, 0.5, [0])
    assert (second.items, second.tokens, second.padded_tokens) == (2, 8, 12)
    assert second.padding_ratio == pytest.approx(1 / 3)
    assert list(second.queue_delays_s) == [0.5, 0.25]
    assert bench.observer.depths[-1] == 0
    assert max(bench.observer.depths) == 2


@dataclass(frozen=True, slots=True)
class Ask:
    """A caller comes, with a kind and a cost for each item; ``patience`` in seconds."""

    parts: Sequence[tuple[str, int]]
    patience: float
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Leave:
    """A caller goes."""

    caller: int


@dataclass(frozen=True, slots=True)
class Finish:
    """A lane ends its batch, if one has any."""

    lane: int


@dataclass(frozen=True, slots=True)
class Pass:
    """Time passes, and the event loop turns."""

    seconds: int
    turns: int


Event = Ask | Leave | Finish | Pass


@dataclass(eq=False)
class Caller:
    """One caller of a schedule.

    ``crowd`` is the most that can have waited before it, and ``held`` the most of its own subject.
    """

    items: list[Item]
    deadline: float
    crowd: int
    held: int
    subject: str
    task: AnswerTask
    is_cancelled: bool = False

    def accepts(self, answer: Sequence[str] | BaseException, now: float, room: int) -> bool:
        """Tell whether the answer is the caller's own, or an error that it may get."""
        kinds = {item.name.split()[0] for item in self.items}
        fails = bool(kinds & {"poison", "forgets"})
        errors = {
            asyncio.CancelledError: self.is_cancelled,
            DeadlineExceeded: self.deadline <= now,
            # By its deadline only where something waits.
            QueueFull: self.held + self.crowd + 2 * len(self.items) > 2 * room
            or (self.crowd > 0 and self.deadline < math.inf),
            # A flaky one that was computed by itself is not tried again.
            InferenceFailed: fails or "flaky" in kinds,
        }
        if isinstance(answer, BaseException):
            return errors.get(type(answer), False)
        return not fails and answer == [f"done {item.name}" for item in self.items]


class Schedule:
    """Plays events to a batcher, and notes each rule that one of its batches breaks."""

    def __init__(self, limits: BatchingSettings, lanes: int, *, express: bool) -> None:
        self.limits = limits
        self.lanes, self.batch_tokens = lanes + express, 40
        self.bench = Bench(
            limits, lanes, self.batch_tokens, self.prepare, self.compute, express=express
        )
        self.callers: list[Caller] = []
        self.owners: dict[Item, Caller] = {}
        self.queued = 0
        self.begun: set[Item] = set()
        self.broken: list[str] = []

    async def prepare(self, inputs: Sequence[Item], subject: str) -> Sequence[Item]:
        for _ in range(len(inputs) % 3):
            await asyncio.sleep(0)
        self.queued += len(inputs)
        return inputs

    async def compute(self, batch: Sequence[Item], *, alone: bool) -> list[str]:
        padded, computing = (
            max(item.cost for item in batch) * len(batch),
            self.bench.device.computing,
        )
        new = set(batch) - self.begun
        owners = [self.owners[item] for item in new]
        rules = {
            "count": len(batch) > (self.limits.max_batch_items or math.inf),
            "tokens": len(batch) > 1 and padded > self.batch_tokens,
            "lanes": len(computing) >= self.lanes,
            "alone": alone and bool(computing),
            "computed for one who left": any(caller.is_cancelled for caller in owners),
            "begun too late": any(owner.deadline <= self.bench.clock.now for owner in owners),
        }
        self.broken += [rule for rule, is_broken in rules.items() if is_broken]
        self.begun |= new
        return await self.bench.device.compute(batch, alone=alone)

    async def play(self, events: Sequence[Event]) -> None:
        self.bench.batcher.start()
        for event in events:
            match event:
                case Ask(parts, patience, subject):
                    self._ask(parts, self.bench.clock.now + patience, subject)
                case Leave(number) if number < len(self.callers):
                    caller = self.callers[number]
                    caller.is_cancelled |= caller.task.cancel()
                case Finish(lane) if computing := self.bench.device.computing:
                    self.bench.device.finish(lane % len(computing))
                case Pass(seconds, turns):
                    self.bench.clock.now += seconds
                    for _ in range(turns):
                        await asyncio.sleep(0)
        self.bench.device.set_free()
        await settle()

    def _ask(self, parts: Sequence[tuple[str, int]], deadline: float, subject: str = "") -> None:
        number = len(self.callers)
        items = [Item(f"{kind} {number}.{at}", cost) for at, (kind, cost) in enumerate(parts)]
        skipped = self.bench.observer.gone + self.bench.observer.expired
        crowd = len(self.owners) - len(self.begun) - skipped
        held = sum(owner.subject == subject for owner in self.owners.values())
        task = self.bench.ask(*items, deadline=deadline, subject=subject)
        caller = Caller(items, deadline, crowd, min(held, crowd), subject, task)
        self.callers.append(caller)
        self.owners |= dict.fromkeys(items, caller)

    async def check(self) -> None:
        observer, room = self.bench.observer, self.limits.max_queue_items
        assert self.broken == []
        alone = len({caller.subject for caller in self.callers}) <= 1
        assert max(observer.depths, default=0) <= (room if alone else 2 * room)
        assert len(self.begun) + observer.gone + observer.expired == self.queued
        for caller in self.callers:
            assert caller.task.done(), "a caller is left hanging"
            (answer,) = await asyncio.gather(caller.task, return_exceptions=True)
            assert caller.accepts(answer, self.bench.clock.now, room), answer
        assert self.bench.batcher.alive
        assert self.bench.deaths == []
        # Nothing waits nor computes: the next caller is served at once.
        self._ask([("last", 1)], math.inf)
        assert await self.callers[-1].task == [f"done last {len(self.callers) - 1}.0"]
        assert self.bench.device.alone[-1]
        assert observer.depths[-1] == 0


kinds = st.sampled_from(["good"] * 12 + ["poison", "forgets", "flaky"])
lengths = st.sampled_from([0, 1, 4, 5, 5, 5, 9, 10, 10, 10, 50])
asks = st.builds(
    Ask,
    st.lists(st.tuples(kinds, lengths), max_size=7),
    st.sampled_from([math.inf, math.inf, math.inf, 0, 2, 9]),
    st.sampled_from(["", "", "light", "heavy"]),
)
passes = st.builds(Pass, st.integers(0, 2), st.integers(0, 6))
events = st.one_of(
    asks,
    passes,
    asks,
    passes,
    st.builds(Finish, st.integers(0, 2)),
    st.builds(Leave, st.integers(0, 9)),
)
limits = st.builds(
    BatchingSettings,
    max_batch_tokens=st.just(None),
    max_batch_items=st.integers(1, 8),
    max_padding_ratio=st.sampled_from([0, 0.1, 0.5]),
    max_overtakes=st.integers(0, 3),
    max_queue_items=st.integers(1, 60),
)


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(
    limits=limits,
    lanes=st.integers(1, 3),
    events=st.lists(events, max_size=60),
    express=st.booleans(),
)
def test_whatever_comes_every_caller_gets_its_own_answer_or_its_proper_error(
    limits: BatchingSettings, lanes: int, events: list[Event], *, express: bool
) -> None:
    async def play() -> None:
        schedule = Schedule(limits, lanes, express=express)
        await schedule.play(events)
        await schedule.check()
        await schedule.bench.batcher.close()

    asyncio.run(play())
