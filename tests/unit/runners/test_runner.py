"""The runner with trivial tasks, on real threads."""

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from kaiten.context import Principal, RequestContext, bind
from kaiten.errors import DeadlineExceeded, InferenceFailed, NotReady, QueueFull
from kaiten.serving import BatchStats
from kaiten.settings.models import BatchingSettings
from runners.runner import Runner
from runners.tasks.base import Task
from tests.unit.runners.batching.test_batcher import Item, Recorder, Silent, settle

# Ends a test that would hang; nothing waits so long.
PATIENCE_S = 10
LONG = "long " * 1000


class Upper:
    """Answers each input in upper case, and notes the threads that it is called on."""

    lanes = 1
    batch_tokens = 10_000
    batch_items = 64
    packed = False
    express = False
    inline_chars = 512.0

    def __init__(self) -> None:
        self.warmed_up = False
        self.preparing: list[threading.Thread] = []
        self.inferring: list[threading.Thread] = []
        self.alone: list[bool] = []

    def prepare(self, inputs: Sequence[str]) -> list[Item]:
        self.preparing.append(threading.current_thread())
        return [Item(text, len(text)) for text in inputs]

    def infer(self, batch: Sequence[Item], *, alone: bool = False) -> list[str]:
        self.inferring.append(threading.current_thread())
        self.alone.append(alone)
        return [item.name.upper() for item in batch]

    def finish(self, batch: Sequence[Item], raw: list[str]) -> list[str]:
        return [f"{answer}!" for answer in raw]

    def check(self) -> None:
        pass

    def warm_up(self, tokens: int, items: int) -> None:
        self.warmed_up = True


class TwoLanes(Upper):
    """Ends a batch only beside another one."""

    lanes = 2

    def __init__(self) -> None:
        super().__init__()
        self.together = threading.Barrier(2)

    def infer(self, batch: Sequence[Item], *, alone: bool = False) -> list[str]:
        self.together.wait(PATIENCE_S)
        return super().infer(batch, alone=alone)


class Held(Upper):
    """Computes, or warms up, until the test lets it go."""

    def __init__(self, *, warms_up_at_once: bool = True) -> None:
        super().__init__()
        self.began = threading.Event()
        self.let_go = threading.Event()
        self._warms_up_at_once = warms_up_at_once

    def infer(self, batch: Sequence[Item], *, alone: bool = False) -> list[str]:
        self._hold()
        return super().infer(batch, alone=alone)

    def warm_up(self, tokens: int, items: int) -> None:
        if not self._warms_up_at_once:
            self._hold()

    def _hold(self) -> None:
        self.began.set()
        self.let_go.wait(PATIENCE_S)


class WithExpressLane(Held):
    """Blocks on heavy items, and can compute light ones beside them."""

    batch_tokens = 40
    express = True

    def infer(self, batch: Sequence[Item], *, alone: bool = False) -> list[str]:
        if batch[0].name == "light":
            return Upper.infer(self, batch, alone=alone)
        return super().infer(batch, alone=alone)


class Cold(Upper):
    def warm_up(self, tokens: int, items: int) -> None:
        raise MemoryError


class Unfinished(Upper):
    def finish(self, batch: Sequence[Item], raw: list[str]) -> list[str]:
        if "BAD" in raw:
            raise KeyError("BAD")
        return super().finish(batch, raw)


class Dead(Upper):
    """A device that computes nothing any more."""

    def infer(self, batch: Sequence[Item], *, alone: bool = False) -> list[str]:
        raise RuntimeError("device-side assert")

    def check(self) -> None:
        raise RuntimeError("device-side assert")


class Slow(Upper):
    """Prepares long texts when the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.began = threading.Event()
        self.let_go = threading.Event()

    def prepare(self, inputs: Sequence[str]) -> list[Item]:
        if inputs[0] == LONG:
            self.began.set()
            self.let_go.wait(PATIENCE_S)
        return super().prepare(inputs)


class Exhausted(Upper):
    """Lets an iterator's end escape, which a future cannot hold."""

    def prepare(self, inputs: Sequence[str]) -> list[Item]:
        if inputs[0] == LONG:
            next(iter(()))
        return super().prepare(inputs)

    def infer(self, batch: Sequence[Item], *, alone: bool = False) -> list[str]:
        if any(item.name == "bad" for item in batch):
            next(iter(()))
        return super().infer(batch, alone=alone)


class Broken(Silent):
    def batch_computed(self, stats: BatchStats) -> None:
        raise RuntimeError("observer")


class House:
    """Makes runners, and keeps what they tell of their death."""

    def __init__(self) -> None:
        self.runners: list[Runner] = []
        self.deaths: list[str] = []
        self.died = asyncio.Event()

    def make(
        self, task: Upper, observer: Silent | None = None, limits: BatchingSettings | None = None
    ) -> Runner:
        runner = Runner(
            "upper:1.0.0",
            ["a"],
            Task(task, task),
            limits or BatchingSettings(),
            observer or Silent(),
            on_death=lambda: self._note_death(runner.model_tag),
        )
        self.runners.append(runner)
        return runner

    def _note_death(self, tag: str) -> None:
        self.deaths.append(tag)
        self.died.set()


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = House()
    yield house
    for runner in house.runners:
        await runner.close()


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[EventDict]]:
    """Keep the log from the terminal."""
    with capture_logs() as captured:
        yield captured


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, PATIENCE_S)


async def test_ready_once_warm_and_not_after_close(house: House) -> None:
    task = Upper()
    runner = house.make(task)
    before = runner.ready
    await runner.start()
    warm = runner.ready
    await runner.close()

    assert (before, warm, runner.ready) == (False, True, False)
    assert task.warmed_up
    assert house.deaths == []
    with pytest.raises(NotReady):
        await runner.predict(["a"])


async def test_not_ready_while_warming_up(house: House) -> None:
    task = Held(warms_up_at_once=False)
    runner = house.make(task)
    starting = asyncio.create_task(runner.start())
    await until(task.began)

    assert not runner.ready
    with pytest.raises(NotReady):
        await runner.predict(["a"])
    task.let_go.set()
    await starting
    assert runner.ready


async def test_failed_warm_up_never_becomes_ready(house: House, logs: list[EventDict]) -> None:
    runner = house.make(Cold())
    await runner.start()

    assert not runner.ready
    with pytest.raises(NotReady):
        await runner.predict(["a"])
    assert [log["event"] for log in logs] == ["warm_up_failed"]
    assert house.deaths == [runner.model_tag]


async def test_three_verbs_in_order(house: House) -> None:
    runner = house.make(Upper())
    await runner.start()

    assert await runner.predict(["one", LONG, "two"]) == ["ONE!", f"{LONG.upper()}!", "TWO!"]
    assert runner.labels == ("a",)
    assert runner.queue_delay_s == 1


async def test_short_inputs_are_prepared_inline_and_long_ones_on_a_thread(house: House) -> None:
    task = Upper()
    runner = house.make(task)
    await runner.start()
    caller_thread = threading.current_thread()
    await runner.predict(["short", "as well"])
    await runner.predict([LONG])
    # Each is short, and all together are long.
    await runner.predict(["short"] * 200)

    first, second, third = task.preparing
    assert first is caller_thread
    assert second is third is not caller_thread
    assert not {second} & {*task.inferring}


async def test_device_is_called_on_one_lasting_thread_a_lane(house: House) -> None:
    task = Upper()
    task.lanes = 2
    runner = house.make(task, limits=BatchingSettings(max_batch_items=1))
    await runner.start()
    for _ in range(10):
        await asyncio.gather(*(runner.predict(["one", "two"]) for _ in range(5)))

    assert len(task.inferring) == 100
    assert 1 <= len({*task.inferring}) <= 2
    assert threading.current_thread() not in task.inferring


async def test_lanes_compute_at_the_same_time(house: House) -> None:
    task = TwoLanes()
    runner = house.make(task)
    await runner.start()

    assert await runner.predict(["one", "two"]) == ["ONE!", "TWO!"]
    assert len({*task.inferring}) == 2
    answers = await asyncio.gather(*(runner.predict([text]) for text in ("three", "fours")))
    assert answers == [["THREE!"], ["FOURS!"]]
    assert len({*task.inferring}) == 2


async def test_task_receives_whether_it_is_alone(house: House) -> None:
    task = Upper()
    runner = house.make(task, limits=BatchingSettings(max_batch_items=1))
    await runner.start()
    await runner.predict(["one", "two"])

    assert task.alone == [False, True]


async def test_what_finish_raises_fails_its_own_caller_alone(house: House) -> None:
    runner = house.make(Unfinished())
    await runner.start()
    first, bad, last = await asyncio.gather(
        *(runner.predict([text]) for text in ("one", "bad", "two")), return_exceptions=True
    )

    assert (first, last) == (["ONE!"], ["TWO!"])
    assert isinstance(bad, InferenceFailed)
    assert runner.ready


@pytest.mark.parametrize(("text", "error"), [("bad", InferenceFailed), (LONG, RuntimeError)])
async def test_end_of_an_iterator_is_a_failure_like_others(
    house: House, text: str, error: type[Exception]
) -> None:
    runner = house.make(Exhausted())
    await runner.start()

    with pytest.raises(error):
        await asyncio.wait_for(runner.predict([text]), PATIENCE_S)
    assert await runner.predict(["one"]) == ["ONE!"]


@pytest.mark.parametrize("text", ["short", LONG])
async def test_past_the_deadline_nothing_is_computed(house: House, text: str) -> None:
    task = Upper()
    runner = house.make(task)
    await runner.start()

    with pytest.raises(DeadlineExceeded):
        await runner.predict([text], deadline=-math.inf)
    assert task.inferring == []


async def test_dead_batcher_is_not_ready_and_reports_its_death(house: House) -> None:
    runner = house.make(Upper(), Broken())
    await runner.start()
    await runner.predict(["one"])
    await settle()

    assert not runner.ready
    with pytest.raises(NotReady):
        await runner.predict(["two"])
    assert house.deaths == ["upper:1.0.0"]


async def test_close_answers_what_is_computed_and_what_waits(house: House) -> None:
    task = Held()
    runner = house.make(task)
    await runner.start()
    calls = [asyncio.create_task(runner.predict([text])) for text in ("one", "two")]
    await until(task.began)
    closing = asyncio.create_task(runner.close())
    answers = await asyncio.gather(*calls, return_exceptions=True)
    # The thread itself is waited for.
    assert not closing.done()
    task.let_go.set()
    await closing

    assert [type(answer) for answer in answers] == [NotReady, NotReady]
    assert house.deaths == []


@pytest.mark.parametrize("closed_first", [False, True])
async def test_close_before_it_is_warm_stays_closed(house: House, *, closed_first: bool) -> None:
    task = Held(warms_up_at_once=False)
    runner = house.make(task)
    starting = asyncio.create_task(runner.start())
    await until(task.began)
    closing = asyncio.create_task(runner.close())
    if closed_first:
        # Let it reach the thread that it waits for.
        await asyncio.sleep(0)
    task.let_go.set()
    await asyncio.gather(starting, closing)

    assert not runner.ready


async def test_device_that_fails_at_everything_ends_the_runner(house: House) -> None:
    runner = house.make(Dead(), limits=BatchingSettings(max_batch_items=1))
    await runner.start()
    calls = [asyncio.create_task(runner.predict([str(number)])) for number in range(20)]
    failed = [type(error) for error in await asyncio.gather(*calls, return_exceptions=True)]
    assert failed == [InferenceFailed] * 8 + [NotReady] * 12
    assert not runner.ready
    assert house.deaths == [runner.model_tag]


async def test_room_of_a_caller_who_left_is_kept_until_its_thread_is_done(house: House) -> None:
    task = Slow()
    runner = house.make(task, limits=BatchingSettings(max_queue_items=2))
    await runner.start()
    leaver = asyncio.create_task(runner.predict([LONG, LONG]))
    await until(task.began)
    leaver.cancel()
    await settle()
    with pytest.raises(QueueFull):
        await runner.predict(["short"])

    task.let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    assert await runner.predict(["short"]) == ["SHORT!"]


async def test_texts_of_a_caller_who_left_before_its_turn_are_not_prepared(house: House) -> None:
    task = Slow()
    runner = house.make(task)
    await runner.start()
    first = asyncio.create_task(runner.predict([LONG]))
    await until(task.began)
    second = asyncio.create_task(runner.predict([f"{LONG} again"]))
    await settle()
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    task.let_go.set()
    await first
    assert len(task.preparing) == 1


def hanging_after(seconds: float) -> BatchingSettings:
    """Return limits with a shorter timeout than any that a setting may name."""
    return BatchingSettings().model_copy(update={"hang_timeout_s": seconds})


async def test_computation_that_hangs_ends_the_runner_and_answers_who_waits(
    house: House, logs: list[EventDict]
) -> None:
    task, observer = Held(), Recorder()
    runner = house.make(task, observer, hanging_after(0.1))
    await runner.start()
    calls = [asyncio.create_task(runner.predict([text])) for text in ("one", "two")]
    answers = await asyncio.gather(*calls, return_exceptions=True)

    assert [type(answer) for answer in answers] == [NotReady, NotReady]
    assert (runner.ready, observer.hangs, house.deaths) == (False, 1, [runner.model_tag])
    assert [log["event"] for log in logs] == ["device_hung", "batcher_died"]
    # It does not wait for the thread.
    await runner.close()
    assert runner.hung
    task.let_go.set()


async def test_preparation_that_hangs_ends_the_runner(house: House) -> None:
    task, observer = Slow(), Recorder()
    runner = house.make(task, observer, hanging_after(0.1))
    await runner.start()
    call = asyncio.create_task(runner.predict([LONG]))
    await until(task.began)
    await asyncio.wait_for(house.died.wait(), PATIENCE_S)

    assert not runner.ready
    assert (observer.hangs, house.deaths) == (1, [runner.model_tag])
    task.let_go.set()
    with pytest.raises(NotReady):
        await call


async def test_warm_up_that_hangs_ends_the_runner(house: House) -> None:
    task, observer = Held(warms_up_at_once=False), Recorder()
    runner = house.make(task, observer, hanging_after(0.01))
    await runner.start()

    assert (runner.ready, observer.hangs, house.deaths) == (False, 1, [runner.model_tag])
    await runner.close()
    assert runner.hung
    task.let_go.set()


async def test_long_inputs_of_subjects_are_prepared_in_turns(house: House) -> None:
    task = Slow()
    runner = house.make(task)
    await runner.start()
    prepared: list[str] = []

    async def ask(subject: str, *texts: str) -> None:
        bind(RequestContext("request", principal=Principal(subject, frozenset())))
        await runner.predict(texts)
        prepared.append(subject)

    # Each text is a slice of its own.
    calls = [asyncio.create_task(ask("heavy", LONG, *(4 * LONG for _ in range(20))))]
    await until(task.began)
    calls += [asyncio.create_task(ask("heavy", *[4 * LONG] * 20)) for _ in range(3)]
    calls.append(asyncio.create_task(ask("light", f"{LONG} light")))
    await settle()
    task.let_go.set()
    await asyncio.gather(*calls)
    assert prepared[0] == "light"


async def test_light_subject_is_answered_on_a_thread_beside_the_lanes(house: House) -> None:
    task = WithExpressLane()
    runner = house.make(task)
    await runner.start()

    async def ask(subject: str, *texts: str) -> Sequence[str]:
        bind(RequestContext("request", principal=Principal(subject, frozenset())))
        answers: Sequence[str] = await runner.predict(texts)
        return answers

    heavy = [asyncio.create_task(ask("heavy", *["heavy"] * 20))]
    await until(task.began)
    assert await ask("light", "light") == ["LIGHT!"]
    assert not heavy[0].done()
    task.let_go.set()
    assert await heavy[0] == ["HEAVY!"] * 20
    light_thread, *heavy_threads = task.inferring
    assert light_thread not in heavy_threads
