"""Prepares a caller's inputs: short ones on the event loop, long ones on a thread."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from kaiten.errors import BlankText, NotReady
from runners.batching.watchdog import Watchdog
from runners.tasks.base import Processor

# The thread prepares so many characters before it is another subject's turn.
_SLICE_CHARS = 16_384
ResultT = TypeVar("ResultT")


@dataclass(slots=True)
class _Turn:
    """A subject's turn on the thread, and how many of its calls wait for it or hold it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    calls: int = 0


class Preparation:
    """A processor's ``prepare``, with a thread for long inputs.

    Subjects take turns on the thread, with one slice of a call's inputs each.
    """

    def __init__(
        self, processor: Processor[Any, Any, Any, Any], name: str, watchdog: Watchdog
    ) -> None:
        self._processor, self._watchdog = processor, watchdog
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"prepare-{name}")
        self._turns: dict[str, _Turn] = {}
        self._closed = False

    async def prepare(self, inputs: Sequence[Any], subject: str = "") -> Sequence[Any]:
        """Return an item for each input.

        Raises:
            BlankText: An input has nothing left after the tokenizer's normaliser.
            NotReady: The runner is closed.

        """
        if sum(map(len, inputs)) <= self._processor.inline_chars:
            return self._processor.prepare(inputs)
        turn = self._turns.setdefault(subject, _Turn())
        turn.calls += 1
        items: list[Any] = []
        try:
            for inputs_slice in _slices(inputs):
                # The thread runs slices first in, first out; each subject has one there at a time.
                async with turn.lock:
                    try:
                        items += await self._on_thread(inputs_slice)
                    except BlankText as error:
                        raise BlankText(len(items) + error.index) from None
        finally:
            turn.calls -= 1
            if not turn.calls:
                del self._turns[subject]
        return items

    async def _on_thread(self, inputs: Sequence[Any]) -> Sequence[Any]:
        if self._closed:
            raise NotReady
        job = self._thread.submit(_without_stop_iteration, partial(self._prepare_watched, inputs))
        prepared = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(prepared)
        except asyncio.CancelledError:
            # A thread cannot be cancelled, and the caller keeps its room in the queue until then.
            if not job.cancel():
                await asyncio.wait([prepared])
            raise

    async def close(self, *, wait: bool = True) -> None:
        """Close the thread, and wait for its end if ``wait``; waiting calls raise NotReady."""
        self._closed = True
        await asyncio.to_thread(partial(self._thread.shutdown, wait=wait, cancel_futures=not wait))

    def _prepare_watched(self, inputs: Sequence[Any]) -> Sequence[Any]:
        with self._watchdog.watching():
            return self._processor.prepare(inputs)


async def run_on(threads: ThreadPoolExecutor, call: Callable[[], ResultT]) -> ResultT:
    """Return what a call returns, or raise what it raises, on one of these threads."""
    return await asyncio.get_running_loop().run_in_executor(threads, _without_stop_iteration, call)


def _without_stop_iteration(call: Callable[[], ResultT]) -> ResultT:
    """Call, and convert a StopIteration: a future cannot hold one, and would never be done."""
    try:
        return call()
    except StopIteration as error:
        raise RuntimeError("StopIteration") from error


def _slices(inputs: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yield the inputs in slices of up to _SLICE_CHARS characters, each of at least one input."""
    start = chars = 0
    for index, value in enumerate(inputs):
        if index > start and chars + len(value) > _SLICE_CHARS:
            yield inputs[start:index]
            start, chars = index, 0
        chars += len(value)
    yield inputs[start:]
