"""A connection whose requests pass admission, and that yields the event loop often."""

import asyncio
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

from gateway.admission import Admission
from gateway.http_head import BoundedProtocol
from gateway.http_protocol import IdleConnections
from kaiten.sections import Gateway

# Parsed without a look at the clock. Hundreds of pipelined requests fit into so many bytes.
_SLICE_BYTES = 16_384
# After this long a connection with more to parse lets the others go first.
_TURN_S = 0.005


class AdmissionProtocol(BoundedProtocol):
    """One connection, whose requests pass admission.

    Bytes are parsed slice by slice, and parsing pauses while earlier requests of the connection
    wait: a client that pipelines thousands of requests takes neither the event loop nor memory for
    them. ``idle`` holds the worker's idle connections, and ``crowd`` those over
    ``max_connections``, which serve probes only.
    """

    def __init__(  # noqa: PLR0913  uvicorn passes four of them
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Gateway,
        idle: IdleConnections,
        admission: Admission,
        max_connections: int,
        crowd: IdleConnections,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop, limits=limits, idle=idle)
        self._admission = admission
        self._max_connections = max_connections
        self._crowd, self._crowded = crowd, False
        self._unparsed = b""
        # Whether an early answer is being sent, and whether it is complete.
        self._answering = self._answered = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport, self._resume_reading)
        if len(self.connections) > self._max_connections:
            self._crowded = not self._idle.close_oldest(exclude=transport)
        if self._crowded:
            # It may carry a probe, so the next connection must not close it as idle.
            self._idle.remove(transport)
            self._crowd.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.remove(self.transport)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._unparsed:
            # These bytes were read before the pause took effect.
            self._unparsed += data
            return
        self._parse_for_a_turn(data)

    def _parse_for_a_turn(self, data: bytes) -> None:
        end_of_turn = self.loop.time() + _TURN_S
        view = memoryview(data)
        for start in range(0, len(view), _SLICE_BYTES):
            if start and (self.pipeline or self.loop.time() > end_of_turn):
                self._unparsed = bytes(view[start:])
                self.transport.pause_reading()
                if not self.pipeline:
                    self.loop.call_soon(self._resume_parsing)
                return
            super().data_received(bytes(view[start : start + _SLICE_BYTES]))
            if self.transport.is_closing():
                return

    def _resume_parsing(self) -> None:
        unparsed, self._unparsed = self._unparsed, b""
        if unparsed and not self.transport.is_closing():
            self._parse_for_a_turn(unparsed)
            self._resume_reading()

    def _resume_reading(self) -> None:
        """Read from the transport again, unless bytes wait here or in the request's body."""
        if not (self._unparsed or self.flow.read_paused or self.transport.is_closing()):
            self.transport.resume_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if self._crowded:
            cycle.keep_alive = False
        self._admission.admit(
            # uvicorn types the scope more narrowly than Starlette.
            cast("Scope", cycle.scope),
            partial(self._start, cycle, app),
            partial(self._answer, cycle),
            crowded=self._crowded,
        )

    def _start(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        # The client may have disconnected while its request waited.
        if not cycle.disconnected:
            super()._start_asgi_task(cycle, app)

    def _answer(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:
        """Answer without a task, or with one if the client is slow to read earlier answers."""
        if self.flow.write_paused:
            self._start(cycle, cast("ASGI3Application", app))
            return
        cycle.flow = _NEVER_PAUSED
        nested, self._answering = self._answering, True
        copy_context().run(_finish, cycle.run_asgi(cast("ASGI3Application", app)))
        if nested:
            return
        # A loop and not recursion: each of many pipelined requests would call the next.
        while self._answered:
            self._answered = False
            self._complete_response()
        self._answering = False

    def on_response_complete(self) -> None:
        if self._answering:
            self._answered = True
        else:
            self._complete_response()

    def _complete_response(self) -> None:
        super().on_response_complete()
        if self._unparsed and not self.pipeline:
            self.loop.call_soon(self._resume_parsing)


class _Flow(FlowControl):
    """Lets the protocol decide whether the transport resumes reading.

    uvicorn resumes it whenever the application waits for a body, and would collect the bytes of a
    client that pipelines without end in memory.
    """

    def __init__(self, transport: asyncio.Transport, on_resume: Callable[[], None]) -> None:
        super().__init__(transport)
        self._on_resume = on_resume

    def resume_reading(self) -> None:
        if self.read_paused:
            self.read_paused = False
            self._on_resume()


class _NeverPaused(FlowControl):
    """The flow control of an early answer: small, and never sent while writing is paused."""

    def __init__(self) -> None:
        self.write_paused = False


_NEVER_PAUSED = _NeverPaused()


def _finish(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that never suspends to its end."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise RuntimeError("an early answer waited")
