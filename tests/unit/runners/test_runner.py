"""The runner with a trivial task, on real threads."""

import asyncio
import threading
from collections.abc import Sequence

from kaiten.settings import Batching
from runners.observer import BatchReport
from runners.runner import Runner
from tests.unit.runners.test_batcher import Item, Silent


class Upper:
    """Answers each input in upper case, and notes the threads that it is called on."""

    def __init__(self) -> None:
        self.warmed_up = False
        self.threads: dict[str, set[str]] = {"prepare": set(), "infer": set()}

    def prepare(self, inputs: Sequence[str]) -> list[Item]:
        self.threads["prepare"].add(threading.current_thread().name)
        return [Item(text, len(text)) for text in inputs]

    def infer(self, batch: Sequence[Item]) -> list[str]:
        self.threads["infer"].add(threading.current_thread().name)
        return [item.name.upper() for item in batch]

    def finish(self, batch: Sequence[Item], raw: list[str]) -> list[str]:
        return [f"{answer}!" for answer in raw]

    def warm_up(self) -> None:
        self.warmed_up = True


class Cold(Upper):
    def warm_up(self) -> None:
        raise MemoryError


class Broken(Silent):
    def batch_computed(self, report: BatchReport) -> None:
        raise RuntimeError("observer")


async def test_ready_once_warm_and_not_after_close() -> None:
    task = Upper()
    runner = Runner("upper:1.0.0", ["a"], task, Batching(), Silent())
    before = runner.ready
    await runner.start()
    warm = runner.ready
    await runner.close()

    assert (before, warm, runner.ready) == (False, True, False)
    assert task.warmed_up


async def test_three_verbs_in_order_and_the_device_on_one_lasting_thread() -> None:
    task = Upper()
    runner = Runner("upper:1.0.0", ["a"], task, Batching(), Silent())
    await runner.start()
    answers = [await runner.predict(["one", "two"]) for _ in range(3)]
    await runner.close()

    assert answers == [["ONE!", "TWO!"]] * 3
    assert task.threads["infer"] == {"device-upper:1.0.0_0"}
    assert task.threads["prepare"] == {"prepare-upper:1.0.0_0"}


async def test_failed_warm_up_never_becomes_ready() -> None:
    runner = Runner("cold:1.0.0", ["a"], Cold(), Batching(), Silent())
    await runner.start()
    ready = runner.ready
    await runner.close()

    assert not ready


async def test_dead_loop_is_not_ready() -> None:
    runner = Runner("upper:1.0.0", ["a"], Upper(), Batching(), Broken())
    await runner.start()
    await runner.predict(["one"])
    ready = runner.ready
    await runner.close()

    assert not ready


async def test_close_while_warming_up_stays_closed() -> None:
    let_go = threading.Event()

    class Slow(Upper):
        def warm_up(self) -> None:
            let_go.wait()

    runner = Runner("slow:1.0.0", ["a"], Slow(), Batching(), Silent())
    starting = asyncio.create_task(runner.start())
    await asyncio.sleep(0)
    closing = asyncio.create_task(runner.close())
    await asyncio.sleep(0)
    let_go.set()
    await asyncio.gather(starting, closing)

    assert not runner.ready
