"""Preparing a caller's inputs: on the event loop where that is cheap, else on a thread."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from runners.tasks.base import Processor

# Of all inputs of a call.
_INLINE_CHARS = 512
ResultT = TypeVar("ResultT")


class Preparation:
    """A processor's first half, and the thread that it has for long inputs."""

    def __init__(
        self, processor: Processor[Any, Any, Any, Any], name: str, *, cheap: bool = False
    ) -> None:
        self._processor, self._cheap = processor, cheap
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"prepare-{name}")

    async def prepare(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Return an item for each input."""
        # A thread's two switches cost more than a few short texts.
        if self._cheap or sum(map(len, inputs)) <= _INLINE_CHARS:
            return self._processor.prepare(inputs)
        job = self._thread.submit(_carriable, partial(self._processor.prepare, inputs))
        prepared = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(prepared)
        except asyncio.CancelledError:
            # A thread can not be told to stop: until it has, the caller's room is not given back.
            if not job.cancel():
                await asyncio.wait([prepared])
            raise

    async def close(self) -> None:
        """Wait for the thread to end."""
        await asyncio.to_thread(self._thread.shutdown)


async def run_on(threads: ThreadPoolExecutor, call: Callable[[], ResultT]) -> ResultT:
    """Return what a call returns, or raise what it raises, on one of these threads."""
    return await asyncio.get_running_loop().run_in_executor(threads, _carriable, call)


def _carriable(call: Callable[[], ResultT]) -> ResultT:
    """Call; no future can carry a StopIteration, and whoever awaits it would wait for ever."""
    try:
        return call()
    except StopIteration as error:
        raise RuntimeError("StopIteration") from error
