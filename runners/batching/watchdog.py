"""Detects hung work on a native thread, which neither exceptions nor cancellation can end."""

import asyncio
import math
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

# The timeout is counted in this many steps of the event loop, so that after a pause of the whole
# process, such as that of a suspended virtual machine, only one step has passed.
_STEPS = 10
ResultT = TypeVar("ResultT")


class DeviceHung(Exception):
    """Work on a device or thread has not ended within its timeout."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"work has not ended within {timeout_s:g} seconds")


class Watchdog:
    """Watches work in progress for taking longer than ``timeout_s``; None turns it off."""

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s or math.inf
        self._steps: dict[object, int] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the work in the ``with`` block, on any thread."""
        work = object()
        self._steps[work] = 0
        try:
            yield
        finally:
            del self._steps[work]

    async def until_hung(self) -> NoReturn:
        """Wait forever.

        Raises:
            DeviceHung: Some work takes longer than the timeout.

        """
        if self._timeout_s == math.inf:
            await asyncio.Event().wait()
        while True:
            await asyncio.sleep(self._timeout_s / _STEPS)
            for work in [*self._steps]:
                # Work may end on its thread during the loop.
                if work in self._steps:
                    self._steps[work] += 1
            if max([*self._steps.values()], default=0) > _STEPS:
                raise DeviceHung(self._timeout_s)

    async def guard(self, work: Awaitable[ResultT]) -> ResultT:
        """Await work and return its result.

        Raises:
            DeviceHung: The work takes longer than the timeout. It is cancelled, which does not end
                a native thread.

        """
        with self.watching():
            working = asyncio.ensure_future(work)
            hanging = asyncio.create_task(self.until_hung())
            try:
                await asyncio.wait([working, hanging], return_when=asyncio.FIRST_COMPLETED)
            finally:
                hanging.cancel()
                if not working.done():
                    working.cancel()
            if hanging.done() and not hanging.cancelled():
                raise DeviceHung(self._timeout_s)
            return await working
