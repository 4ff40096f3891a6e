"""Bounds how long work on a native thread may take, which no exception or cancellation ends."""

import asyncio
import math
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

# The timeout is counted in so many steps of the event loop's own: after a pause of the whole
# process, as of a virtual machine, no more than one of them has passed.
_STEPS = 10
ResultT = TypeVar("ResultT")


class DeviceHung(Exception):
    """Work on a device or thread has not ended in the time that it may take."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"work has not ended within {timeout_s:g} seconds")


class Watchdog:
    """Knows the work in progress, and tells when some of it takes longer than ``timeout_s``."""

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s or math.inf
        self._steps: dict[object, int] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the work within, which may be on any thread."""
        work = object()
        self._steps[work] = 0
        try:
            yield
        finally:
            del self._steps[work]

    async def until_hung(self) -> NoReturn:
        """Wait for ever, or raise DeviceHung."""
        if self._timeout_s == math.inf:
            await asyncio.Event().wait()
        while True:
            await asyncio.sleep(self._timeout_s / _STEPS)
            for work in [*self._steps]:
                # It may have ended on its thread meanwhile.
                if work in self._steps:
                    self._steps[work] += 1
            if max([*self._steps.values()], default=0) > _STEPS:
                raise DeviceHung(self._timeout_s)

    async def guard(self, work: Awaitable[ResultT]) -> ResultT:
        """Return what the work returns; DeviceHung if it takes too long."""
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
