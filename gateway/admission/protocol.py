"""A connection that admission answers without a task, and that holds the event loop briefly."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from functools import partial
from typing import Any, cast

from starlette.types import ASGIApp, Scope
from uvicorn import Config
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from gateway.admission.controller import Admission
from gateway.admission.deadlines import RECEIVED
from gateway.http.backlog import Turns
from gateway.http.head import BoundedProtocol
from gateway.http.protocol import IdleConnections, closing_after_errors
from gateway.interfaces import WorkerConnections
from kaiten.settings.models import GatewaySettings

# Parsed at once, unless a head ends before: a turn can end after each request.
_SLICE_BYTES = 4096
_END_OF_HEAD = b"\r\n\r\n"
# A connection that has more to parse or to answer after this long lets the others go first.
_TURN_S = 0.001
# What turns of all connections take of one iteration of the event loop.
TURNS_S = 0.004


class AdmissionProtocol(BoundedProtocol):
    """One connection, whose requests pass admission.

    It parses and answers in turns, one request at a time, and no further while a request waits or
    the caller does not read: a connection that pipelines thousands of requests holds neither the
    event loop nor memory for them. Until all that it has received is parsed, it receives no more.
    """

    def __init__(  # noqa: PLR0913  uvicorn passes four of them
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: GatewaySettings,
        idle: IdleConnections,
        admission: Admission,
        max_connections: int,
        crowd: IdleConnections,
        turns: Turns,
        workers: WorkerConnections,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop, limits=limits, idle=idle)
        self._admission, self._workers = admission, workers
        self._max_connections = max_connections
        self._crowd, self._crowded = crowd, False
        self._unparsed, self._parsed_bytes, self._received = b"", 0, 0.0
        self._turns, self._in_turn, self._turn_ends_s = turns, False, 0.0
        # Whether a request is admitted however long it took to parse it: one in each turn, as the
        # process may have lost the CPU meanwhile, and a probe is not to wait for another turn.
        self._admits = False
        self._reading = True
        self._answering = self._answered = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport, self._pause_or_resume_reading)
        if len(self.connections) > self._max_connections:
            self._crowded = not self._idle.close_oldest(exclude=transport)
        if self._crowded:
            # It may be a probe's: the next new connection does not close it.
            self._idle.remove(transport)
            self._crowd.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._workers.closed()
        self._crowd.remove(self.transport)
        self._unparsed = b""
        super().connection_lost(exc)
        self.flow = FlowControl(self.transport)

    def data_received(self, data: bytes) -> None:
        # Reading pauses while some is left, so there is more only if the pause took effect late.
        self._unparsed = self._unparsed[self._parsed_bytes :] + data
        self._parsed_bytes = 0
        self._received = time.monotonic()
        # Only as the first bytes of a request: those of a body may look the same.
        urgent = not self._in_message and self._admission.is_urgent(self._unparsed)
        self._turns.take(self._turn, urgent=urgent)
        self._pause_or_resume_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._go_on()

    def _go_on(self) -> None:
        if not self._in_turn:
            if self._has_work:
                self._turns.take(self._turn)
            self._pause_or_resume_reading()

    @property
    def _has_work(self) -> bool:
        """Whether a turn would parse or answer anything."""
        if self.transport.is_closing() or self.flow.write_paused:
            return False
        if self.pipeline:
            return not self._is_answering
        return bool(self._unparsed)

    def _turn(self) -> None:
        """Parse and answer for a moment; at least one slice, and the request that it completes."""
        self._in_turn, self._admits = True, True
        self._turn_ends_s = self._turns.clock() + _TURN_S
        try:
            while self._has_work:
                if self.pipeline:
                    self._admit(*self.pipeline.pop())
                else:
                    self._parse_slice()
                if self._turns.clock() >= self._turn_ends_s:
                    break
        finally:
            self._in_turn = False
        if self._has_work:
            self._turns.wait(self._turn)
        self._pause_or_resume_reading()

    def _parse_slice(self) -> None:
        """Parse to the end of a head, or of a slice of a body."""
        start = self._parsed_bytes
        if self.body_bytes_left > _SLICE_BYTES:
            # No other request can begin in so many bytes.
            end = start + self.body_bytes_left
        else:
            head_end = self._unparsed.find(_END_OF_HEAD, start, start + _SLICE_BYTES)
            end = start + _SLICE_BYTES if head_end < 0 else head_end + len(_END_OF_HEAD)
        data = self._unparsed[start:end]
        if end < len(self._unparsed):
            self._parsed_bytes = end
        else:
            self._unparsed, self._parsed_bytes = b"", 0
        super().data_received(data)
        if self._refused:
            self._unparsed, self._parsed_bytes = b"", 0

    def _pause_or_resume_reading(self) -> None:
        """Read only if no byte waits here, in the request's body, or to be written."""
        reads = not (
            self._unparsed
            or self._refused
            or self._has_work
            or self.flow.read_paused
            or self.flow.write_paused
        )
        if reads != self._reading and not self.transport.is_closing():
            self._reading = reads
            if reads:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        in_time = self._admits or self._turns.clock() < self._turn_ends_s
        if self._in_turn and in_time and not self.flow.write_paused:
            self._admit(cycle, app)
        else:
            # The first to be answered in the next turn.
            self.pipeline.append((cycle, app))

    def _admit(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._active_cycle, self._admits = cycle, False
        if self._crowded:
            cycle.keep_alive = False
        # uvicorn's type of what Starlette calls a scope.
        scope = cast("Scope", cycle.scope)
        # Before its turn, which it may have waited for.
        scope[RECEIVED] = self._received
        self._admission.admit(
            scope,
            partial(self._start, cycle, app),
            partial(self._answer, cycle),
            crowded=self._crowded,
        )

    def _start(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        # A caller may have left while its request waited.
        if not cycle.disconnected:
            super()._start_asgi_task(cycle, app)

    def _answer(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:
        """Answer without a task, unless the caller is slow to take the answers before it."""
        if self.flow.write_paused:
            self._start(cycle, cast("ASGI3Application", app))
            return
        cycle.flow = _NEVER_PAUSED
        nested, self._answering = self._answering, True
        closing = closing_after_errors(cycle, cast("ASGI3Application", app))
        copy_context().run(_finish, cycle.run_asgi(closing))
        if nested:
            return
        # Here and not within the answer: of pipelined requests, each would call the next.
        while self._answered:
            self._answered = False
            super().on_response_complete()
        self._answering = False
        self._go_on()

    def on_response_complete(self) -> None:
        if self._answering:
            self._answered = True
        else:
            super().on_response_complete()
            self._go_on()


class _Flow(FlowControl):
    """Leaves it to the protocol whether to read, although the application asks for it as it waits.

    Otherwise the bytes of a caller that pipelines requests without end collect in memory.
    """

    def __init__(self, transport: asyncio.Transport, on_change: Callable[[], None]) -> None:
        super().__init__(transport)
        self._on_change = on_change

    def pause_reading(self) -> None:
        if not self.read_paused:
            self.read_paused = True
            self._on_change()

    def resume_reading(self) -> None:
        if self.read_paused:
            self.read_paused = False
            self._on_change()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._on_change()


class _NeverPaused(FlowControl):
    """The flow control of an early answer: it is small, and none is given while writing pauses."""

    def __init__(self) -> None:
        self.write_paused = False


_NEVER_PAUSED = _NeverPaused()


def _finish(answering: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that never waits to its end."""
    try:
        answering.send(None)
    except StopIteration:
        return
    raise RuntimeError("an early answer waited")
