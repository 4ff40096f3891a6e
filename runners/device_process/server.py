"""The device process: runners that answer the workers' calls over a Unix socket."""

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog

from kaiten.context import Principal, RequestContext, bind
from kaiten.errors import InferenceFailed, KaitenError, NotReady
from runners.device_process.frames import DeviceRequest, DeviceResponse, FrameProtocol, Kind, frame
from runners.registry import ModelRunner, Registry
from runners.tasks.base import Codec, Model, Task

logger = structlog.get_logger(__name__)
# All workers connect at once when a device process has restarted.
_BACKLOG = 1024
ItemT = TypeVar("ItemT")
RawT = TypeVar("RawT")


class BytesProcessor(Generic[ItemT, RawT]):
    """Takes items as bytes, and returns raw results as bytes: workers prepare and finish them."""

    inline_chars = math.inf

    def __init__(self, codec: Codec[ItemT, RawT]) -> None:
        self._codec = codec

    def prepare(self, inputs: Sequence[bytes]) -> list[ItemT]:
        """Return the items."""
        return self._codec.decode_items(inputs)

    def finish(self, batch: Sequence[ItemT], raw: RawT) -> list[bytes]:  # noqa: ARG002
        """Return the raw results, one for each item."""
        return self._codec.encode_raw(raw)


def bytes_task(model: Model[ItemT, RawT], codec: Codec[ItemT, RawT]) -> Task[Any, Any, Any, Any]:
    """Return a task of the model whose inputs and predictions are bytes."""
    return Task(BytesProcessor(codec), model)


class DeviceServer:
    """Answers workers by runners of bytes_task, which the caller closes."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._connections: set[_WorkerConnection] = set()
        self._disconnected = asyncio.Event()

    async def listen(self, path: Path) -> asyncio.Server:
        """Warm up all models, and then listen at ``path``.

        Nothing listens before every runner is ready, because connected workers send requests.

        Raises:
            NotReady: A runner failed to warm up.

        """
        await self._registry.start()
        if not self._registry.ready:
            raise NotReady
        loop = asyncio.get_running_loop()
        listener = await loop.create_unix_server(self._connect, str(path), backlog=_BACKLOG)
        logger.info("device_process_ready", models=[*self._registry.models])
        return listener

    async def wait_for_disconnects(self) -> None:
        """Wait until the last worker has disconnected."""
        while self._connections:
            self._disconnected.clear()
            await self._disconnected.wait()

    def _connect(self) -> "_WorkerConnection":
        return _WorkerConnection(self._registry, self._connections, self._disconnected)


class _WorkerConnection(FrameProtocol):
    """A worker's connection; it names its model first, and may have many calls at once."""

    def __init__(
        self,
        registry: Registry,
        connections: "set[_WorkerConnection]",
        disconnected: asyncio.Event,
    ) -> None:
        super().__init__()
        self._registry, self._connections = registry, connections
        self._disconnected = disconnected
        self._runner: ModelRunner | None = None
        self._calls: dict[int, asyncio.Task[None]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # The batcher skips the items of cancelled calls.
        for call in self._calls.values():
            call.cancel()
        self._connections.discard(self)
        self._disconnected.set()

    def frame_received(self, kind: Kind, number: int, content: memoryview) -> None:
        if kind is Kind.HELLO:
            self._runner = self._registry.get(str(content, "utf-8"))
            if self._runner is None:
                raise ValueError("no such model is loaded here")
            self.send(frame(Kind.WELCOME, number))
        elif kind is Kind.PING:
            self.send(frame(Kind.PONG, number))
        elif kind is Kind.REQUEST and self._runner is not None:
            call = asyncio.create_task(
                self._answer(self._runner, number, DeviceRequest.decode(content))
            )
            self._calls[number] = call
            call.add_done_callback(lambda _: self._calls.pop(number))
        elif kind is Kind.CANCEL:
            if number in self._calls:
                self._calls[number].cancel()
        else:
            raise ValueError(f"{kind.name} is not expected here")

    async def _answer(self, runner: ModelRunner, number: int, request: DeviceRequest) -> None:
        if request.request_id is not None:
            principal = Principal(request.subject, frozenset())
            bind(RequestContext(request.request_id, principal=principal))
        parts: Sequence[bytes] = ()
        error: KaitenError | None = None
        try:
            parts = await runner.predict(request.parts, request.deadline)
        except KaitenError as raised:
            error = raised
        except asyncio.CancelledError:
            # Sent for its queue delay alone, which the worker tells its next caller.
            self.send(DeviceResponse((), NotReady(), runner.queue_delay_s).encode(number))
            raise
        except Exception:
            logger.exception("call_failed", request_id=request.request_id)
            error = InferenceFailed()
        self.send(DeviceResponse(parts, error, runner.queue_delay_s).encode(number))
