"""Connections whose requests pass admission."""

import asyncio
import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.server import ServerState

from gateway.admission.controller import Admission, Answer
from gateway.admission.protocol import AdmissionProtocol
from gateway.http.backlog import Start, Turns
from gateway.http.protocol import IdleConnections
from kaiten.settings.models import GatewaySettings
from kaiten.settings.roster import Roster
from kaiten.settings.snapshot import memory_file
from tests.unit.gateway.http.test_protocol import Wire as OneWrite
from tests.unit.gateway.http.test_protocol import edge


class Wire(OneWrite):
    """Keeps written bytes in parts, as there are thousands."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[bytes] = []
        self.paused = False

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.parts.append(bytes(data))


class Stub(Admission):
    """Answers /early and /livez early, refuses on crowded connections, and starts the rest."""

    def __init__(self) -> None:
        pass

    def is_urgent(self, data: bytes) -> bool:
        return data.startswith(b"GET /livez ")

    def admit(self, scope: Scope, start: Start, answer: Answer, *, crowded: bool = False) -> None:
        if scope["path"].startswith(("/early", "/livez")):
            answer(_answer_path)
        elif crowded:
            answer(PlainTextResponse("refused", 503))
        else:
            start()


async def _answer_path(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse(scope["path"])(scope, receive, send)


class Ticks:
    """A clock that advances by 0.1 ms each time that it is read: about one early answer."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 0.0001
        return self.now_s


@dataclass
class Worker:
    """Its connections, at most so many."""

    limit: int = 100
    app: ASGIApp = _answer_path
    clock: Callable[[], float] = field(default_factory=Ticks)

    def __post_init__(self) -> None:
        self._config = uvicorn.Config(self.app, log_config=None, lifespan="off")
        self._config.load()
        self.state, self._idle = ServerState(), IdleConnections(1000)
        self._crowd = IdleConnections(16)
        self.turns = Turns(0.004, self.clock)
        self.connections = Roster(memory_file(), 1, 0)

    def connect(self) -> tuple[AdmissionProtocol, Wire]:
        protocol = AdmissionProtocol(
            self._config,
            self.state,
            {},
            asyncio.get_running_loop(),
            limits=GatewaySettings(),
            idle=self._idle,
            admission=Stub(),
            max_connections=self.limit,
            crowd=self._crowd,
            turns=self.turns,
            workers=self.connections,
        )
        wire = Wire()
        self.connections.opened()
        protocol.connection_made(wire)
        return protocol, wire

    async def answer(self) -> None:
        while self.state.tasks:
            await asyncio.gather(*self.state.tasks)
            await asyncio.sleep(0)


def get(path: str, body: bytes = b"") -> bytes:
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    return b"GET %s HTTP/1.1\r\nHost: kaiten\r\n%s\r\n" % (path.encode(), length) + body


def statuses(wire: Wire) -> list[str]:
    return [part[9:12].decode() for part in wire.parts if part.startswith(b"HTTP/1.1 ")]


async def test_an_early_answer_needs_no_task() -> None:
    worker = Worker()
    protocol, wire = worker.connect()
    protocol.data_received(get("/early"))
    assert statuses(wire) == ["200"]
    assert not worker.state.tasks
    assert not wire.closed


async def test_a_request_that_was_slow_to_parse_is_answered_in_its_turn() -> None:
    class Preempted(Ticks):
        def __call__(self) -> float:
            self.now_s += 1
            return self.now_s

    worker = Worker(clock=Preempted())
    protocol, wire = worker.connect()
    protocol.data_received(get("/early/1") + get("/early/2"))
    assert statuses(wire) == ["200"]


async def test_thousands_of_pipelined_requests_are_answered_in_order() -> None:
    worker = Worker()
    protocol, wire = worker.connect()
    paths = [f"/early/{number}" if number % 7 else f"/late/{number}" for number in range(3000)]
    protocol.data_received(b"".join(map(get, paths)))
    at_first = len(statuses(wire))
    while len(statuses(wire)) < len(paths):
        await worker.answer()
        await asyncio.sleep(0)
    assert at_first < len(paths)
    answers = b"".join(wire.parts).split(b"HTTP/1.1 ")[1:]
    assert [answer.rpartition(b"\r\n")[2].decode() for answer in answers] == paths


async def test_one_chunk_of_requests_does_not_hold_the_loop_to_its_end() -> None:
    worker = Worker()
    protocol, wire = worker.connect()
    protocol.data_received(get("/late") + get("/early") * 4000)
    # Those behind one that waits are not even parsed.
    assert len(protocol.pipeline) < 1000
    while len(statuses(wire)) < 4001:
        await worker.answer()
        await asyncio.sleep(0)


async def test_reading_stays_paused_while_bytes_wait_to_be_parsed() -> None:
    worker = Worker()
    protocol, wire = worker.connect()
    protocol.data_received(get("/late") + get("/early") * 4000)
    assert wire.paused
    # As an application does that waits for the caller to leave.
    protocol.flow.pause_reading()
    protocol.flow.resume_reading()
    assert wire.paused
    while len(statuses(wire)) < 4001:
        await worker.answer()
        await asyncio.sleep(0)
    assert not wire.paused


async def test_the_body_of_a_refused_request_is_passed_over() -> None:
    worker = Worker()
    protocol, wire = worker.connect()
    requests = get("/early/refused", b"x" * 100_000) + get("/late")
    protocol.data_received(requests[:200])
    assert statuses(wire) == ["200"]
    protocol.data_received(requests[200:])
    while len(statuses(wire)) < 2:
        await worker.answer()
        await asyncio.sleep(0)


async def test_over_the_limit_the_longest_idle_connection_is_closed() -> None:
    worker = Worker(limit=2)
    (first, oldest), (_, second), (third, newest) = (worker.connect() for _ in range(3))
    assert [oldest.closed, second.closed, newest.closed] == [True, False, False]
    third.data_received(get("/late"))
    await worker.answer()
    assert statuses(newest) == ["200"]
    first.connection_lost(None)


async def test_over_the_limit_of_busy_connections_only_probes_are_answered() -> None:
    release = asyncio.Event()

    async def wait_and_answer(scope: Scope, receive: Receive, send: Send) -> None:
        await release.wait()
        await _answer_path(scope, receive, send)

    worker = Worker(limit=1, app=wait_and_answer)
    busy, wire = worker.connect()
    busy.data_received(get("/late"))
    (probe, probed), (other, refused) = worker.connect(), worker.connect()
    probe.data_received(get("/early"))
    other.data_received(get("/late"))
    assert (statuses(probed), statuses(refused)) == (["200"], ["503"])
    assert probed.closed
    assert refused.closed
    release.set()
    await worker.answer()
    assert statuses(wire) == ["200"]


async def test_a_request_whose_caller_has_left_is_not_started() -> None:
    worker = Worker()
    protocol, _ = worker.connect()
    starts: list[Start] = []
    protocol._admission.admit = lambda scope, start, answer, *, crowded=False: starts.append(start)  # type: ignore[method-assign]
    protocol.data_received(get("/late"))
    protocol.connection_lost(None)
    starts[0]()
    assert not worker.state.tasks


async def test_a_turn_answers_a_few_of_the_requests_that_one_connection_pipelines() -> None:
    protocol, wire = Worker().connect()
    protocol.data_received(get("/early") * 400)
    assert 1 <= len(statuses(wire)) <= 10
    assert wire.paused


async def test_connections_that_pipeline_probes_leave_the_loop_to_others() -> None:
    worker = Worker()
    hostile = [worker.connect() for _ in range(8)]
    for protocol, _ in hostile:
        protocol.data_received(get("/early") * 400)
    for _ in range(20):
        before = sum(len(statuses(wire)) for _, wire in hostile)
        await asyncio.sleep(0)
        after = sum(len(statuses(wire)) for _, wire in hostile)
        # 4 ms of the clock, at one tick or more for each answer.
        assert 1 <= after - before <= 40
        # A probe is answered as it comes, beside all that wait.
        probe, wire = worker.connect()
        probe.data_received(get("/early"))
        assert statuses(wire) == ["200"]


async def test_every_connection_that_pipelines_gets_its_turn() -> None:
    worker = Worker()
    pairs = [worker.connect() for _ in range(8)]
    for protocol, _ in pairs:
        protocol.data_received(get("/early") * 100)
    while any(len(statuses(wire)) < 100 for _, wire in pairs):
        await asyncio.sleep(0)
        counts = [len(statuses(wire)) for _, wire in pairs]
        assert max(counts) - min(counts) <= 30


async def test_nothing_is_parsed_or_answered_while_the_caller_does_not_read() -> None:
    protocol, wire = Worker().connect()
    protocol.pause_writing()
    assert wire.paused
    protocol.data_received(get("/early") + get("/late"))
    assert statuses(wire) == []
    assert protocol._unparsed == get("/early") + get("/late")
    protocol.resume_writing()
    assert statuses(wire) == ["200"]
    assert not wire.paused


async def test_a_request_behind_one_that_waits_is_answered_after_it() -> None:
    release = asyncio.Event()

    async def wait_and_answer(scope: Scope, receive: Receive, send: Send) -> None:
        await release.wait()
        await _answer_path(scope, receive, send)

    worker = Worker(app=wait_and_answer)
    protocol, wire = worker.connect()
    protocol.data_received(get("/late") + get("/early") * 5)
    await asyncio.sleep(0)
    assert (statuses(wire), len(protocol.pipeline)) == ([], 1)
    release.set()
    await worker.answer()
    assert statuses(wire) == ["200"] * 6


async def test_a_caller_who_leaves_a_pipeline_is_noticed_by_its_first_request() -> None:
    message_types: list[str] = []

    async def watching(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        message_types.append((await receive())["type"])

    worker = Worker(app=watching)
    protocol, _ = worker.connect()
    protocol.data_received(get("/late") * 3)
    await asyncio.sleep(0)
    protocol.connection_lost(None)
    async with asyncio.timeout(10):
        await worker.answer()
    assert message_types == ["http.disconnect"]


async def test_what_is_no_http_is_answered_once_and_after_the_requests_before_it() -> None:
    worker = Worker(app=edge(_answer_path))
    protocol, wire = worker.connect()
    protocol.data_received(get("/early") + get("/late") + b"no HTTP\r\n\r\n" + get("/early"))
    await worker.answer()
    assert statuses(wire) == ["200", "200", "400"]
    assert wire.closed


async def test_a_body_that_is_not_asked_for_is_buffered_within_bounds() -> None:
    worker, read_bytes = Worker(), 65_536
    protocol, wire = worker.connect()
    # It waits for its turn, as in a full backlog.
    protocol._admission.admit = lambda scope, start, answer, *, crowded=False: None  # type: ignore[method-assign]
    protocol.data_received(b"POST /late HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n")
    reads = 0
    while not wire.paused and reads < 100:
        protocol.data_received(b"x" * read_bytes)
        reads += 1
    assert wire.paused
    assert protocol.cycle is not None
    assert len(protocol.cycle.body) <= HIGH_WATER_LIMIT + read_bytes


async def test_requests_sent_ahead_are_not_started_once_their_caller_has_left() -> None:
    started: list[str] = []
    release = asyncio.Event()

    async def wait_and_answer(scope: Scope, receive: Receive, send: Send) -> None:
        started.append(scope["path"])
        await release.wait()
        await _answer_path(scope, receive, send)

    worker = Worker(app=wait_and_answer)
    protocol, _ = worker.connect()
    protocol.data_received(get("/first") + get("/second"))
    await asyncio.sleep(0)
    protocol.connection_lost(None)
    release.set()
    await worker.answer()
    assert started == ["/first"]


async def test_a_probe_passes_connections_that_flood_the_loop() -> None:
    worker = Worker()
    for _ in range(100):
        worker.connect()[0].data_received(get("/early") * 50)
    other, waiting = worker.connect()
    other.data_received(get("/early"))
    # A body that looks like a probe is none.
    sender, _ = worker.connect()
    sender.data_received(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n")
    sender.data_received(b"GET /livez HTTP/1.1\r\n")
    probe, wire = worker.connect()
    probe.data_received(get("/livez"))
    assert (statuses(waiting), statuses(wire)) == ([], ["200"])
    assert sender._unparsed


async def test_a_body_of_known_length_is_parsed_at_once_and_what_follows_in_turns() -> None:
    worker = Worker()
    protocol, wire = worker.connect()
    body = b"x" * 60_000
    protocol.data_received(b"POST /early HTTP/1.1\r\nContent-Length: 60000\r\n\r\n")
    assert protocol.body_bytes_left == 60_000
    protocol.data_received(body[:50_000])
    assert (protocol.body_bytes_left, protocol._unparsed) == (10_000, b"")
    protocol.data_received(body[50_000:] + get("/early") * 400)
    assert protocol.body_bytes_left == 0
    assert 2 <= len(statuses(wire)) <= 10
    assert wire.paused
    protocol.transport.close()


async def test_the_length_of_a_chunked_body_is_unknown() -> None:
    protocol, _ = Worker().connect()
    protocol.data_received(b"POST /early HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nab")
    assert protocol.body_bytes_left == 0


async def test_a_connection_that_has_ended_is_freed_without_the_garbage_collector() -> None:
    worker = Worker()
    gc.collect()
    gc.disable()
    try:
        protocol, wire = worker.connect()
        for path in ("/early", "/late", "/early"):
            protocol.data_received(get(path))
            await worker.answer()
        assert statuses(wire) == ["200"] * 3
        # One that is being answered, and one that never will be.
        protocol.data_received(get("/late") + get("/late"))
        wire.close()
        protocol.connection_lost(None)
        await worker.answer()
        ended = weakref.ref(protocol)
        del protocol
        assert ended() is None
    finally:
        gc.enable()
