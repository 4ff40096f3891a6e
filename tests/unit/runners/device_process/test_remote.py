"""Runners on both ends of a real socket, with a model that the test itself sets free."""

import asyncio
import math
import shutil
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from kaiten.context import Principal, RequestContext, bind
from kaiten.errors import DeadlineExceeded, InferenceFailed, NotReady, QueueFull
from kaiten.serving import ServedModel
from kaiten.settings.models import BatchingSettings, RunnerSettings
from runners import embedding_distance
from runners.device_process import client
from runners.device_process.client import RemoteRunner
from runners.device_process.frames import DeviceResponse, Kind, frame
from runners.device_process.server import DeviceServer, bytes_task
from runners.registry import Registry
from runners.runner import Runner
from runners.tasks.base import Codec, Processor, Task
from runners.tasks.text_classification import serving
from runners.tasks.text_classification.inspection import inspect
from tests.unit.runners.batching.test_batcher import Item, Recorder, settle

# Ends a test that would hang; nothing waits so long.
PATIENCE_S = 10


class Letters:
    """Both ends of a task that turns texts into capitals, and their codec."""

    inline_chars = 512.0

    def prepare(self, inputs: Sequence[str]) -> list[Item]:
        return [Item(text, len(text)) for text in inputs]

    def finish(self, batch: Sequence[Item], raw: Sequence[str]) -> list[str]:
        if "unfinished" in [item.name for item in batch]:
            raise KeyError("unfinished")
        return [f"{answer}!" for answer in raw]

    def encode_items(self, items: Sequence[Item]) -> list[bytes]:
        return [item.name.encode() for item in items]

    def decode_items(self, parts: Sequence[bytes]) -> list[Item]:
        return self.prepare([part.decode() for part in parts])

    def encode_raw(self, raw: Sequence[str]) -> list[bytes]:
        return [answer.encode() for answer in raw]

    def decode_raw(self, parts: Sequence[bytes]) -> list[str]:
        return [part.decode() for part in parts]


@dataclass
class Capitals:
    """The network; while it is ``held`` it computes nothing."""

    lanes: int = 1
    batch_tokens: int = 10_000
    batch_items: int = 64
    packed: bool = False
    express: bool = False
    batches: list[list[str]] = field(default_factory=list)
    began: threading.Event = field(default_factory=threading.Event)
    free: threading.Event = field(default_factory=threading.Event)
    cold: bool = False

    def __post_init__(self) -> None:
        self.free.set()

    def hold(self) -> None:
        self.free.clear()
        self.began.clear()

    def infer(self, batch: Sequence[Item], *, alone: bool = False) -> list[str]:
        self.batches.append([item.name for item in batch])
        self.began.set()
        self.free.wait(PATIENCE_S)
        if any(item.name == "bad" for item in batch):
            raise ValueError("bad")
        return [item.name.upper() for item in batch]

    def check(self) -> None:
        pass

    def warm_up(self, tokens: int, items: int) -> None:
        if self.cold:
            raise MemoryError


class House:
    """A device process's inside, and workers that ask it, in one event loop."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.network = Capitals()
        self.deaths: list[str] = []
        self.observer = Recorder()
        self._workers: list[tuple[RemoteRunner, asyncio.Task[None]]] = []
        self._leave = asyncio.Event()
        self.serving: asyncio.Task[None] | None = None

    def serve(
        self, limits: BatchingSettings | None = None, task: Task[Any, Any, Any, Any] | None = None
    ) -> None:
        task = task or bytes_task(self.network, Letters())
        died = lambda: self.deaths.append("died")  # noqa: E731
        runner = Runner(
            "letters:1.0.0", ["a"], task, limits or BatchingSettings(), self.observer, died
        )
        self.serving = asyncio.create_task(self._serve(runner))

    async def _serve(self, runner: Runner) -> None:
        registry = Registry()
        registry.add(ServedModel(runner.model_tag, runner.labels, ""), runner)
        server = DeviceServer(registry)
        try:
            listening = await server.listen(self.socket)
            await self._leave.wait()
            listening.close()
            await server.wait_for_disconnects()
        finally:
            await runner.close()

    def leave(self) -> None:
        self._leave.set()

    def worker(
        self,
        tag: str = "letters:1.0.0",
        max_pending: int = 512,
        ends: tuple[Processor[Any, Any, Any, Any], Codec[Any, Any]] | None = None,
        hang_timeout_s: float | None = None,
    ) -> RemoteRunner:
        processor, codec = ends or (Letters(), Letters())
        limits = BatchingSettings(max_queue_items=max_pending // 4)
        # Shorter than any that a setting may name.
        limits = limits.model_copy(update={"hang_timeout_s": hang_timeout_s})
        died = lambda: self.deaths.append("worker died")  # noqa: E731
        worker = RemoteRunner(tag, ["a"], processor, codec, self.socket, limits, died)
        self._workers.append((worker, asyncio.create_task(worker.start())))
        return worker

    async def ready_worker(self, max_pending: int = 512) -> RemoteRunner:
        worker = self.worker(max_pending=max_pending)
        await until_ready(worker)
        return worker

    async def until_waiting(self, items: int) -> None:
        await until(lambda: self.observer.depths[-1:] == [items])

    async def close(self) -> None:
        self.network.free.set()
        self.leave()
        for worker, starting in self._workers:
            await worker.close()
            await starting
        if self.serving is not None:
            await asyncio.wait([self.serving], timeout=PATIENCE_S)
            assert self.serving.done()


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what only bytes on their way, or a thread, bring about."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110  there is no event for it
            await asyncio.sleep(0)


async def until_ready(worker: RemoteRunner) -> None:
    await until(lambda: worker.ready)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path / "cpu.sock")
    yield house
    await house.close()


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[EventDict]]:
    """Keep the log from the terminal."""
    with capture_logs() as captured:
        yield captured


async def until_begun(network: Capitals) -> None:
    assert await asyncio.to_thread(network.began.wait, PATIENCE_S)


async def test_workers_are_answered_each_its_own(house: House) -> None:
    house.serve()
    first, second = await house.ready_worker(), await house.ready_worker()
    texts = [[f"{worker}-{number}" for number in range(9)] for worker in "ab"]
    answers = await asyncio.gather(first.predict(texts[0]), second.predict(texts[1]))
    assert [*answers] == [[f"{text.upper()}!" for text in worker_texts] for worker_texts in texts]
    assert (first.model_tag, first.labels, first.queue_delay_s) == ("letters:1.0.0", ("a",), 1)


async def test_requests_of_all_workers_share_a_batch(house: House) -> None:
    house.serve()
    first, second = await house.ready_worker(), await house.ready_worker()
    house.network.hold()
    calls = [asyncio.create_task(first.predict(["first"]))]
    await until_begun(house.network)
    calls += [asyncio.create_task(first.predict(["b"])), asyncio.create_task(second.predict(["c"]))]
    await house.until_waiting(2)
    house.network.free.set()
    assert await asyncio.gather(*calls) == [["FIRST!"], ["B!"], ["C!"]]
    assert [sorted(batch) for batch in house.network.batches] == [["first"], ["b", "c"]]


async def test_no_inputs_are_no_call(house: House) -> None:
    house.serve()
    worker = await house.ready_worker()
    assert await worker.predict([]) == []
    assert house.network.batches == []


@pytest.mark.parametrize("with_reference", [True, False])
async def test_distance_is_taken_where_the_network_is(
    with_reference: bool,  # noqa: FBT001
    house: House,
    tiny_classifier: Path,
    tmp_path: Path,
) -> None:
    served = Path(shutil.copytree(tiny_classifier, tmp_path / "model"))
    inspect(tiny_classifier, served)
    one_centroid = embedding_distance.serialize_centroids(np.eye(1, 32, dtype=np.float32))
    (tmp_path / embedding_distance.CENTROIDS_FILE).write_bytes(one_centroid)
    reference = tmp_path if with_reference else None
    task = serving.load(served, 64, RunnerSettings(device="cpu", threads=1), reference)
    house.serve(task=bytes_task(task.model, serving.codec))
    worker = house.worker(ends=(serving.load_processor(served, 64), serving.codec))
    await until_ready(worker)
    answers = await worker.predict(texts := ["w1", "w2 w3"])

    items = task.processor.prepare(texts)
    for answer, expected in zip(
        answers, task.processor.finish(items, task.model.infer(items)), strict=True
    ):
        assert answer.index == expected.index
        assert (answer.distance is not None) is with_reference
        assert answer.distance == (pytest.approx(expected.distance) if with_reference else None)


async def test_long_inputs_and_many_pass(house: House) -> None:
    house.serve(BatchingSettings(max_queue_items=4096))
    worker = await house.ready_worker(max_pending=4096)
    texts = [f"{number} " + "long " * (number % 400) for number in range(2000)]
    assert await worker.predict(texts) == [f"{text.upper()}!" for text in texts]


async def test_not_ready_before_the_device_process_is(house: House) -> None:
    worker = house.worker()
    await settle()
    assert not worker.ready
    with pytest.raises(NotReady):
        await worker.predict(["a"])
    house.serve()
    await until_ready(worker)
    assert await worker.predict(["a"]) == ["A!"]


async def test_model_that_is_not_held_is_never_ready(house: House) -> None:
    house.serve()
    worker, other = await house.ready_worker(), house.worker("other:1.0.0")
    assert await worker.predict(["a"]) == ["A!"]
    await settle()
    assert not other.ready


async def test_nobody_listens_where_the_warm_up_fails(house: House) -> None:
    house.network.cold = True
    house.serve()
    assert house.serving is not None
    with pytest.raises(NotReady):
        await asyncio.wait_for(house.serving, PATIENCE_S)
    assert house.deaths == ["died"]
    assert not house.socket.exists()


async def test_failure_is_the_callers_own(house: House, logs: list[EventDict]) -> None:
    house.serve()
    worker = await house.ready_worker()
    bind(RequestContext("the-request"))
    calls = (worker.predict([name]) for name in ("good", "bad"))
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert answers[0] == ["GOOD!"]
    assert isinstance(answers[1], InferenceFailed)
    (failure,) = (log for log in logs if log["event"] == "item_failed")
    assert failure["request_id"] == "the-request"


async def test_answer_that_can_not_be_finished_is_a_failure(house: House) -> None:
    house.serve()
    worker = await house.ready_worker()
    with pytest.raises(InferenceFailed):
        await worker.predict(["unfinished"])
    assert await worker.predict(["a"]) == ["A!"]


async def test_past_the_deadline_nothing_is_computed(house: House) -> None:
    house.serve()
    worker = await house.ready_worker()
    with pytest.raises(DeadlineExceeded):
        await worker.predict(["late"], deadline=-math.inf)
    assert house.network.batches == []


async def test_full_queue_of_the_device_is_reported(house: House) -> None:
    house.serve(BatchingSettings(max_queue_items=1))
    worker = await house.ready_worker()
    with pytest.raises(QueueFull) as caught:
        await worker.predict(["one", "two"])
    assert caught.value.retry_after_s == 1
    assert await worker.predict(["one"]) == ["ONE!"]


async def test_worker_holds_only_so_many_itself(house: House) -> None:
    house.serve()
    worker = await house.ready_worker(max_pending=4)
    house.network.hold()
    call = asyncio.create_task(worker.predict([*"abcd"]))
    await until_begun(house.network)
    assert worker.retry_after_s("", 1, math.inf) == worker.queue_delay_s
    with pytest.raises(QueueFull):
        await worker.predict(["three"])
    house.network.free.set()
    assert await call == ["A!", "B!", "C!", "D!"]
    assert worker.retry_after_s("", 1, math.inf) is None
    assert await worker.predict(["three"]) == ["THREE!"]


async def test_who_has_left_is_not_computed(house: House) -> None:
    house.serve()
    worker = await house.ready_worker()
    house.network.hold()
    first = asyncio.create_task(worker.predict(["first"]))
    await until_begun(house.network)
    leaver = asyncio.create_task(worker.predict(["leaver"]))
    await house.until_waiting(1)
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    house.network.free.set()
    assert await first == ["FIRST!"]
    assert await worker.predict(["last"]) == ["LAST!"]
    assert ["leaver"] not in house.network.batches


async def test_worker_that_ends_takes_its_calls_with_it(house: House) -> None:
    house.serve()
    dying, other = await house.ready_worker(), await house.ready_worker()
    house.network.hold()
    first = asyncio.create_task(other.predict(["first"]))
    await until_begun(house.network)
    lost = asyncio.create_task(dying.predict(["lost"]))
    await house.until_waiting(1)
    await dying.close()
    with pytest.raises(NotReady):
        await lost
    assert not dying.ready
    house.network.free.set()
    assert await first == ["FIRST!"]
    assert await other.predict(["last"]) == ["LAST!"]
    assert ["lost"] not in house.network.batches


async def test_device_process_that_ends_is_found_again(house: House, logs: list[EventDict]) -> None:
    house.serve()
    worker = await house.ready_worker()
    house.network.hold()
    lost = asyncio.create_task(worker.predict(["lost"]))
    await until_begun(house.network)
    assert worker._connection is not None
    worker._connection.disconnect()
    with pytest.raises(NotReady):
        await lost
    house.network.free.set()
    await until_ready(worker)
    assert await worker.predict(["again"]) == ["AGAIN!"]
    events = [log["event"] for log in logs]
    assert events.count("device_process_lost") == 1
    assert events.count("device_process_found") == 2


async def test_leaving_waits_for_the_last_caller(house: House) -> None:
    house.serve()
    worker = await house.ready_worker()
    house.network.hold()
    call = asyncio.create_task(worker.predict(["held"]))
    await until_begun(house.network)
    house.leave()
    house.network.free.set()
    assert await call == ["HELD!"]
    assert house.serving is not None
    assert not house.serving.done()
    await worker.close()
    await asyncio.wait_for(house.serving, PATIENCE_S)
    assert not house.deaths


NONSENSE = {
    "a call before a model": frame(Kind.REQUEST, 1, b""),
    "an answer": frame(Kind.RESPONSE, 1, b""),
    "a call that is cut off": frame(Kind.HELLO, 0, b"letters:1.0.0")
    + frame(Kind.REQUEST, 1, b"cut"),
    "a model of another name": frame(Kind.HELLO, 0, b"other:1.0.0"),
    "a name that is no text": frame(Kind.HELLO, 0, b"\xff"),
    "another language": b"GET / HTTP/1.1\r\nHost: a socket of ours\r\n\r\n",
}


@pytest.mark.parametrize("sent", NONSENSE.values(), ids=NONSENSE)
async def test_caller_that_makes_no_sense_is_hung_up_on(sent: bytes, house: House) -> None:
    house.serve()
    worker = await house.ready_worker()
    reader, writer = await asyncio.open_unix_connection(str(house.socket))
    writer.write(sent)
    with suppress(ConnectionError):
        await asyncio.wait_for(reader.read(), PATIENCE_S)
    writer.close()
    assert await worker.predict(["a"]) == ["A!"]


class Mute(asyncio.Protocol):
    """Accepts connections, and sends only the frames that the test gives it."""

    def __init__(self, first: bytes, callers: list[asyncio.BaseTransport]) -> None:
        self._first, self._callers = first, callers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._callers.append(transport)
        transport.write(self._first)


@pytest.fixture
async def mute(house: House) -> AsyncIterator[Callable[..., Awaitable[None]]]:
    """Return a function that starts a listener which sends these frames only."""
    callers: list[asyncio.BaseTransport] = []
    servers: list[asyncio.Server] = []

    async def listen(first: bytes = b"") -> None:
        make = lambda: Mute(first, callers)  # noqa: E731
        loop = asyncio.get_running_loop()
        servers.append(await loop.create_unix_server(make, str(house.socket)))

    yield listen
    for server in servers:
        server.close()
    for caller in callers:
        assert isinstance(caller, asyncio.Transport)
        caller.abort()


async def test_closing_while_nobody_welcomes_it_ends(
    house: House, mute: Callable[..., Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    await mute()
    monkeypatch.setattr(client, "_TIMEOUT_S", 0.01)
    worker = house.worker()
    await settle()
    await worker.close()
    assert not worker.ready


async def test_closing_just_before_the_welcome_ends(
    house: House, mute: Callable[..., Awaitable[None]]
) -> None:
    await mute(frame(Kind.WELCOME, 0))
    worker = house.worker()
    await worker.close()
    assert not worker.ready


async def test_process_that_falls_silent_is_lost(
    house: House,
    mute: Callable[..., Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
    logs: list[EventDict],
) -> None:
    await mute(frame(Kind.WELCOME, 0))
    monkeypatch.setattr(client, "_TIMEOUT_S", 0.01)
    worker = house.worker()
    await until(lambda: any(log["event"] == "device_process_lost" for log in logs))
    with pytest.raises(NotReady):
        await worker.predict(["a"])


async def test_process_that_reads_no_more_is_asked_no_more(
    house: House, mute: Callable[..., Awaitable[None]]
) -> None:
    await mute(frame(Kind.WELCOME, 0))
    worker = house.worker()
    await until_ready(worker)
    large = ["long " * 100_000]
    calls = [asyncio.create_task(worker.predict(large)) for _ in range(20)]
    await until(lambda: any(call.done() for call in calls))
    await worker.close()
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(error) for error in errors} == {QueueFull, NotReady}


async def test_response_to_a_cancelled_call_updates_the_queue_delay(house: House) -> None:
    house.serve()
    worker = await house.ready_worker()
    assert worker._connection is not None
    worker._connection.frame_received(
        Kind.RESPONSE, 99, memoryview(DeviceResponse((), None, 7).encode(99))[9:]
    )
    assert worker.queue_delay_s == 7


async def test_subject_travels_with_the_call_and_shares_the_device(house: House) -> None:
    house.serve(BatchingSettings(max_batch_items=2))
    worker = await house.ready_worker()
    house.network.hold()

    async def ask(subject: str, *texts: str) -> Sequence[Any]:
        bind(RequestContext("request", principal=Principal(subject, frozenset())))
        return await worker.predict(texts)

    calls = [asyncio.create_task(ask("heavy", "first", *("heavy" for _ in range(9))))]
    await until_begun(house.network)
    await house.until_waiting(8)
    calls.append(asyncio.create_task(ask("light", "a")))
    await house.until_waiting(9)
    house.network.free.set()
    heavy, light = await asyncio.gather(*calls)
    assert (len(heavy), light) == (10, ["A!"])
    assert "a" in house.network.batches[1]


class Stuck(Letters):
    """Prepares a long text when the test lets it."""

    def __init__(self) -> None:
        self.free = threading.Event()

    def prepare(self, inputs: Sequence[str]) -> list[Item]:
        if len(inputs[0]) > 1000:
            self.free.wait(PATIENCE_S)
        return super().prepare(inputs)


async def test_preparation_that_hangs_in_a_worker_turns_it_red(house: House) -> None:
    house.serve()
    processor = Stuck()
    worker = house.worker(ends=(processor, processor), hang_timeout_s=0.05)
    await until_ready(worker)
    call = asyncio.create_task(worker.predict(["long " * 1000]))
    await until(lambda: worker.hung)
    assert not worker.ready
    assert house.deaths == ["worker died"]
    call.cancel()
    processor.free.set()
    with pytest.raises(asyncio.CancelledError):
        await call
