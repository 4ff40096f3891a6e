"""A worker's end: a runner whose network is in a device process."""

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
from runners.device_process.frames import Answer, Ask, FrameProtocol, Kind, frame
from runners.tasks.base import Codec, Processor

logger = structlog.get_logger(__name__)
_RETRY_S = 0.1
# A process that does not answer for so long is no better than none.
_PATIENCE_S = 10
_NUMBERS = 1 << 32
# What it may hold, in queues' lengths: the device process itself refuses more than one, and this
# only bounds what waits to be tokenised, travels or is computed.
_ROOM = 4


class RemoteRunner:
    """Prepares and finishes here, and has a device process compute what lies between.

    It asks at ``socket``, and goes on trying until a device process listens there. It holds a few
    queues' lengths of inputs, shared between subjects as the queue is; more are refused.
    ``on_death`` is called if the thread that prepares hangs.
    """

    def __init__(  # noqa: PLR0913, PLR0917  it stands between two processes
        self,
        tag: str,
        labels: Sequence[str],
        processor: Processor[Any, Any, Any, Any],
        codec: Codec[Any, Any],
        socket: Path,
        limits: BatchingSettings,
        on_death: Callable[[], None],
    ) -> None:
        self.tag = tag
        self.labels = tuple(labels)
        self._processor, self._codec, self._socket = processor, codec, socket
        self._max_pending = _ROOM * limits.max_queue_items
        self._on_death = on_death
        self._pending: Counter[str] = Counter()
        self._watchdog = Watchdog(limits.hang_timeout_s)
        self._preparation = Preparation(processor, tag, self._watchdog)
        self.hung = False
        self._link: _Link | None = None
        self._closing = asyncio.Event()
        self._told = ""

    @property
    def ready(self) -> bool:
        """Whether the device process holds the model, warm, and answers."""
        return self._link is not None and self._link.connected and not self.hung

    @property
    def queue_delay_s(self) -> int:
        """What all that waits takes, as the device process last told, in seconds, at least 1."""
        return self._link.queue_delay_s if self._link else 1

    def retry_after_s(
        self,
        subject: str,
        inputs: int,
        deadline: float,  # noqa: ARG002  a runner's
        ahead: int = 0,
    ) -> int | None:
        """Return when to retry, in seconds, if so many inputs of a subject would be refused now.

        What the device process itself would refuse, also for the deadline, is not known here.
        """
        return None if self._fits(subject, inputs, ahead) else self.queue_delay_s

    async def start(self) -> None:
        """Stay connected to the device process until closed."""
        watching = asyncio.create_task(self._watch())
        try:
            await self._stay_connected()
        finally:
            watching.cancel()

    async def _watch(self) -> None:
        """Have the worker replaced if its thread for preparation hangs."""
        try:
            await self._watchdog.until_hung()
        except DeviceHung as error:
            self.hung = True
            logger.critical("device_hung", model=self.tag, reason=str(error))
            self._on_death()

    async def _stay_connected(self) -> None:
        while not self._closing.is_set():
            link = await self._connect()
            if link is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), _RETRY_S)
            elif self._closing.is_set():
                link.hang_up()
            else:
                self._link = link
                self._tell("device_process_found")
                await link.keep_asking(_PATIENCE_S)
                self._link = None
                if not self._closing.is_set():
                    self._tell("device_process_lost")

    async def predict(self, inputs: Sequence[Any], deadline: float = math.inf) -> Sequence[Any]:
        """Return the task's prediction for each input, in order; ``deadline`` in monotonic time.

        QueueFull, DeadlineExceeded and InferenceFailed as a runner of this process raises them;
        NotReady also where the device process ends before it answers.
        """
        link = self._link
        if link is None:
            raise NotReady
        context = current_or_none()
        subject = context.subject if context else ""
        if not self._fits(subject, len(inputs)):
            raise QueueFull(self.queue_delay_s)
        self._pending[subject] += len(inputs)
        try:
            items = await self._preparation.prepare(inputs, subject)
            if not items:
                return []
            if context is not None and context.reserve is not None:
                await context.reserve(sum(item.cost for item in items))
            answer = await link.ask(self._codec.encode_items(items), deadline)
        finally:
            self._pending[subject] -= len(inputs)
            if not self._pending[subject]:
                del self._pending[subject]
        if answer.error is not None:
            raise answer.error
        return self._finish(items, answer.parts)

    async def close(self) -> None:
        """Hang up; who waits is answered with NotReady."""
        self._closing.set()
        if self._link is not None:
            self._link.hang_up()
        await self._preparation.close(wait=not self.hung)

    def _fits(self, subject: str, items: int, ahead: int = 0) -> bool:
        held, pending = self._pending[subject] + ahead, self._pending.total() + ahead
        return has_room(items, held, pending, self._max_pending)

    async def _connect(self) -> "_Link | None":
        """Return a connection on which the model can be asked, None where there is none yet."""
        loop = asyncio.get_running_loop()
        try:
            _, link = await loop.create_unix_connection(_Link, str(self._socket))
        except OSError:
            return None
        link.send(frame(Kind.HELLO, 0, self.tag.encode()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                if await link.welcome:
                    return link
        link.hang_up()
        self._tell("device_process_refuses")
        return None

    def _tell(self, event: str) -> None:
        """Log what has become of the connection, once."""
        if event != self._told:
            self._told = event
            level = logger.info if event == "device_process_found" else logger.error
            level(event, model=self.tag, socket=str(self._socket))

    def _finish(self, items: Sequence[Any], parts: Sequence[bytes]) -> Sequence[Any]:
        try:
            return self._processor.finish(items, self._codec.decode_raw(parts))
        except Exception:
            context = current_or_none()
            logger.exception("item_failed", request_id=context.request_id if context else None)
            raise InferenceFailed from None


class _Link(FrameProtocol):
    """A connection to a device process."""

    def __init__(self) -> None:
        super().__init__()
        self.welcome: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.queue_delay_s = 1
        self._ended = asyncio.Event()
        self._heard = False
        self._numbers = count()
        self._waiting: dict[int, asyncio.Future[Answer]] = {}

    async def keep_asking(self, patience_s: float) -> None:
        """Return once the connection has ended; end it where nothing is heard for so long.

        A process that is stopped keeps its connections, and would answer nobody.
        """
        while self.connected:
            self._heard = False
            self.send(frame(Kind.PING, 0))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), patience_s)
            if not self._heard:
                self.hang_up()
        await self._ended.wait()

    async def ask(self, parts: Sequence[bytes], deadline: float) -> Answer:
        """Return what became of a call; NotReady if the connection ends before."""
        if not self.connected:
            raise NotReady
        if self.congested:
            raise QueueFull(self.queue_delay_s)
        number = next(self._numbers) % _NUMBERS
        context = current_or_none()
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        request_id = context.request_id if context else None
        subject = subject_digest(context.subject) if context else ""
        self.send(Ask(parts, deadline, request_id, subject).encode(number))
        try:
            return await answer
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
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(NotReady())

    def frame_received(self, kind: Kind, number: int, content: memoryview) -> None:
        self._heard = True
        if kind is Kind.WELCOME:
            if not self.welcome.done():
                self.welcome.set_result(True)
        elif kind is Kind.ANSWER:
            found = Answer.decode(content)
            self.queue_delay_s = found.queue_delay_s
            answer = self._waiting.get(number)
            # Who has left is not answered.
            if answer is not None and not answer.done():
                answer.set_result(found)
        elif kind is not Kind.PONG:
            raise ValueError(f"{kind.name} is not expected here")
