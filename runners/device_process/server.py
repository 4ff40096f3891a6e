"""The device process's end: runners that answer the workers' calls over a Unix socket."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog

from kaiten.context import Principal, RequestContext, bind
from kaiten.errors import InferenceFailed, KaitenError, NotReady
from runners.device_process.frames import Answer, Ask, FrameProtocol, Kind, frame
from runners.runner import Runner
from runners.tasks.base import Codec, Model, Task

logger = structlog.get_logger(__name__)
# All workers connect at once when a device process is back.
_BACKLOG = 1024
ItemT = TypeVar("ItemT")
RawT = TypeVar("RawT")


class CarriedProcessor(Generic[ItemT, RawT]):
    """Takes items as bytes, and gives what was computed as bytes: the ends are in the workers."""

    inline_chars = math.inf

    def __init__(self, codec: Codec[ItemT, RawT]) -> None:
        self._codec = codec

    def prepare(self, inputs: Sequence[bytes]) -> list[ItemT]:
        """Return the items."""
        return self._codec.decode_items(inputs)

    def finish(self, batch: Sequence[ItemT], raw: RawT) -> list[bytes]:  # noqa: ARG002
        """Return what was computed, one for each item."""
        return self._codec.encode_raw(raw)


def carried(model: Model[ItemT, RawT], codec: Codec[ItemT, RawT]) -> Task[Any, Any, Any, Any]:
    """Return a task of the model whose inputs and predictions are bytes."""
    return Task(CarriedProcessor(codec), model)


class DeviceServer:
    """Answers for runners of carried tasks. Whoever makes it closes them."""

    def __init__(self, runners: Sequence[Runner]) -> None:
        self._runners = {runner.tag: runner for runner in runners}
        self._callers: set[_Caller] = set()
        self._left = asyncio.Event()

    async def listen(self, path: Path) -> asyncio.Server:
        """Warm up, and answer at ``path`` from then on; NotReady if a runner fails at it.

        Nothing listens before every runner is ready: who can connect can ask.
        """
        runners = self._runners.values()
        await asyncio.gather(*(runner.start() for runner in runners))
        if not all(runner.ready for runner in runners):
            raise NotReady
        loop = asyncio.get_running_loop()
        listening = await loop.create_unix_server(self._caller, str(path), backlog=_BACKLOG)
        logger.info("device_process_ready", models=[*self._runners])
        return listening

    async def until_left(self) -> None:
        """Wait until the last caller has hung up."""
        while self._callers:
            self._left.clear()
            await self._left.wait()

    def _caller(self) -> "_Caller":
        return _Caller(self._runners, self._callers, self._left)


class _Caller(FrameProtocol):
    """A worker's connection; it names its model first, and may have many calls at once."""

    def __init__(
        self, runners: Mapping[str, Runner], callers: "set[_Caller]", left: asyncio.Event
    ) -> None:
        super().__init__()
        self._runners, self._callers, self._left = runners, callers, left
        self._runner: Runner | None = None
        self._calls: dict[int, asyncio.Task[None]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._callers.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # Nobody is there to be answered: what it had queued is skipped.
        for call in self._calls.values():
            call.cancel()
        self._callers.discard(self)
        self._left.set()

    def frame_received(self, kind: Kind, number: int, content: memoryview) -> None:
        if kind is Kind.HELLO:
            self._runner = self._runners.get(str(content, "utf-8"))
            if self._runner is None:
                raise ValueError("no such model is held here")
            self.send(frame(Kind.WELCOME, number))
        elif kind is Kind.PING:
            self.send(frame(Kind.PONG, number))
        elif kind is Kind.ASK and self._runner is not None:
            call = asyncio.create_task(self._answer(self._runner, number, Ask.decode(content)))
            self._calls[number] = call
            call.add_done_callback(lambda _: self._calls.pop(number))
        elif kind is Kind.CANCEL:
            if number in self._calls:
                self._calls[number].cancel()
        else:
            raise ValueError(f"{kind.name} is not expected here")

    async def _answer(self, runner: Runner, number: int, ask: Ask) -> None:
        if ask.request_id is not None:
            principal = Principal(ask.subject, frozenset())
            bind(RequestContext(ask.request_id, principal=principal))
        parts: Sequence[bytes] = ()
        error: KaitenError | None = None
        try:
            parts = await runner.predict(ask.parts, ask.deadline)
        except KaitenError as raised:
            error = raised
        except asyncio.CancelledError:
            # Nobody waits for it, but how long the queue is, the next caller is told.
            self.send(Answer((), NotReady(), runner.drain_seconds).encode(number))
            raise
        except Exception:
            logger.exception("call_failed", request_id=ask.request_id)
            error = InferenceFailed()
        self.send(Answer(parts, error, runner.drain_seconds).encode(number))
