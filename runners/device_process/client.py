"""A worker's side: a runner whose network is in a device process."""

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import structlog

from kaiten.context import current_or_none
from kaiten.errors import InferenceFailed, NotReady, QueueFull
from kaiten.pseudonyms import subject_digest
from kaiten.settings.models import BatchingSettings
from runners.batching.fairness import has_room
from runners.batching.preparation import Preparation
from runners.batching.watchdog import DeviceHung, Watchdog
from runners.device_process.frames import DeviceRequest, DeviceResponse, FrameProtocol, Kind, frame
from runners.tasks.base import Codec, Processor

logger = structlog.get_logger(__name__)
_RETRY_S = 0.1
# A device process that does not answer for so long counts as ended.
_TIMEOUT_S = 10
_NUMBERS = 1 << 32
# The inputs of a worker, in lengths of the queue. The device process itself rejects more than one;
# this limits the inputs that are tokenised, sent or computed.
_MAX_QUEUE_LENGTHS = 4


class RemoteRunner:
    """Prepares and finishes items here, and lets a device process compute them.

    It connects to ``socket``, and retries until a device process listens there. It accepts a few
    queue lengths of inputs, shared fairly between subjects. ``on_death`` is called if the thread
    for preparation hangs.
    """

    def __init__(  # noqa: PLR0913, PLR0917  it connects two processes
        self,
        model_tag: str,
        labels: Sequence[str],
        processor: Processor[Any, Any, Any, Any],
        codec: Codec[Any, Any],
        socket: Path,
        settings: BatchingSettings,
        on_death: Callable[[], None],
    ) -> None:
        self.model_tag = model_tag
        self.labels = tuple(labels)
        self._processor, self._codec, self._socket = processor, codec, socket
        self._max_pending = _MAX_QUEUE_LENGTHS * settings.max_queue_items
        self._on_death = on_death
        self._pending: Counter[str] = Counter()
        self._watchdog = Watchdog(settings.hang_timeout_s)
        self._preparation = Preparation(processor, model_tag, self._watchdog)
        self.hung = False
        self._connection: _Connection | None = None
        self._closing = asyncio.Event()
        self._last_event = ""

    @property
    def ready(self) -> bool:
        """Whether the device process has warmed up the model, and answers."""
        return self._connection is not None and self._connection.connected and not self.hung

    @property
    def queue_delay_s(self) -> int:
        """The time for all waiting items, by the device process, in seconds, at least 1."""
        return self._connection.queue_delay_s if self._connection else 1

    def retry_after_s(
        self,
        subject: str,
        inputs: int,
        deadline: float,  # noqa: ARG002  a runner's signature
        ahead: int = 0,
    ) -> int | None:
        """Return after how many seconds to retry if these inputs would be rejected now.

        Returns None if there is room for them here; the device process may still reject them.
        """
        return None if self._has_room(subject, inputs, ahead) else self.queue_delay_s

    async def start(self) -> None:
        """Stay connected to the device process until closed."""
        watching = asyncio.create_task(self._watch_preparation())
        try:
            await self._stay_connected()
        finally:
            watching.cancel()

    async def _watch_preparation(self) -> None:
        """Call ``on_death`` if the thread for preparation hangs."""
        try:
            await self._watchdog.until_hung()
        except DeviceHung as error:
            self.hung = True
            logger.critical("device_hung", model=self.model_tag, reason=str(error))
            self._on_death()

    async def _stay_connected(self) -> None:
        while not self._closing.is_set():
            link = await self._connect()
            if link is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), _RETRY_S)
            elif self._closing.is_set():
                link.disconnect()
            else:
                self._connection = link
                self._log_change("device_process_found")
                await link.keep_alive(_TIMEOUT_S)
                self._connection = None
                if not self._closing.is_set():
                    self._log_change("device_process_lost")

    async def predict(self, inputs: Sequence[Any], deadline: float = math.inf) -> Sequence[Any]:
        """Return the task's prediction for each input, in order, as Runner.predict does.

        Raises:
            QueueFull: There is no room for all inputs.
            DeadlineExceeded: Some input had not started by the deadline.
            InferenceFailed: Some input failed.
            NotReady: The device process is not ready, or ended before it answered.

        """
        link = self._connection
        if link is None:
            raise NotReady
        context = current_or_none()
        subject = context.subject if context else ""
        if not self._has_room(subject, len(inputs)):
            raise QueueFull(self.queue_delay_s)
        self._pending[subject] += len(inputs)
        try:
            items = await self._preparation.prepare(inputs, subject)
            if not items:
                return []
            if context is not None and context.reserve is not None:
                await context.reserve(sum(item.cost for item in items))
            response = await link.call(self._codec.encode_items(items), deadline)
        finally:
            self._pending[subject] -= len(inputs)
            if not self._pending[subject]:
                del self._pending[subject]
        if response.error is not None:
            raise response.error
        return self._finish(items, response.parts)

    async def close(self) -> None:
        """Disconnect; waiting calls raise NotReady."""
        self._closing.set()
        if self._connection is not None:
            self._connection.disconnect()
        await self._preparation.close(wait=not self.hung)

    def _has_room(self, subject: str, items: int, ahead: int = 0) -> bool:
        held, pending = self._pending[subject] + ahead, self._pending.total() + ahead
        return has_room(items, held, pending, self._max_pending)

    async def _connect(self) -> "_Connection | None":
        """Return a connection for the model; None if no device process serves it yet."""
        loop = asyncio.get_running_loop()
        try:
            _, link = await loop.create_unix_connection(_Connection, str(self._socket))
        except OSError:
            return None
        link.send(frame(Kind.HELLO, 0, self.model_tag.encode()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TIMEOUT_S):
                if await link.welcome:
                    return link
        link.disconnect()
        self._log_change("device_process_refuses")
        return None

    def _log_change(self, event: str) -> None:
        """Log an event of the connection once, until another one."""
        if event != self._last_event:
            self._last_event = event
            level = logger.info if event == "device_process_found" else logger.error
            level(event, model=self.model_tag, socket=str(self._socket))

    def _finish(self, items: Sequence[Any], parts: Sequence[bytes]) -> Sequence[Any]:
        try:
            return self._processor.finish(items, self._codec.decode_raw(parts))
        except Exception:
            context = current_or_none()
            logger.exception("item_failed", request_id=context.request_id if context else None)
            raise InferenceFailed from None


class _Connection(FrameProtocol):
    """A connection to a device process."""

    def __init__(self) -> None:
        super().__init__()
        self.welcome: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.queue_delay_s = 1
        self._ended = asyncio.Event()
        self._received = False
        self._numbers = count()
        self._waiting: dict[int, asyncio.Future[DeviceResponse]] = {}

    async def keep_alive(self, timeout_s: float) -> None:
        """Send pings until the connection ends, and end it if no frame arrives in time.

        A stopped process keeps its connections, but does not answer.
        """
        while self.connected:
            self._received = False
            self.send(frame(Kind.PING, 0))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), timeout_s)
            if not self._received:
                self.disconnect()
        await self._ended.wait()

    async def call(self, parts: Sequence[bytes], deadline: float) -> DeviceResponse:
        """Send a call and return its response.

        Raises:
            QueueFull: The device process reads more slowly than this worker writes.
            NotReady: The connection ends before.

        """
        if not self.connected:
            raise NotReady
        if self.congested:
            raise QueueFull(self.queue_delay_s)
        number = next(self._numbers) % _NUMBERS
        context = current_or_none()
        response: asyncio.Future[DeviceResponse] = asyncio.get_running_loop().create_future()
        self._waiting[number] = response
        request_id = context.request_id if context else None
        subject = subject_digest(context.subject) if context else ""
        self.send(DeviceRequest(parts, deadline, request_id, subject).encode(number))
        try:
            return await response
        except asyncio.CancelledError:
            self.send(frame(Kind.CANCEL, number))
            raise
        finally:
            del self._waiting[number]

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._ended.set()
        if not self.welcome.done():
            self.welcome.set_result(False)
        for response in self._waiting.values():
            if not response.done():
                response.set_exception(NotReady())

    def frame_received(self, kind: Kind, number: int, content: memoryview) -> None:
        self._received = True
        if kind is Kind.WELCOME:
            if not self.welcome.done():
                self.welcome.set_result(True)
        elif kind is Kind.RESPONSE:
            response = DeviceResponse.decode(content)
            self.queue_delay_s = response.queue_delay_s
            waiting = self._waiting.get(number)
            # The caller may have left.
            if waiting is not None and not waiting.done():
                waiting.set_result(response)
        elif kind is not Kind.PONG:
            raise ValueError(f"{kind.name} is not expected here")
