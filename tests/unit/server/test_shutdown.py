"""A worker that receives SIGTERM answers for a while, and reports that it is draining."""

import asyncio
import signal
from collections.abc import Iterator
from types import FrameType

import pytest

from server.shutdown import Drain

# Over at once, but not before the loop's next iteration.
SOON_S = 0.001


@pytest.fixture
def ends() -> Iterator[list[int]]:
    """Stand for uvicorn, which ends at SIGTERM; return the signals that reach it."""
    reached: list[int] = []

    def end(number: int, _: FrameType | None) -> None:
        reached.append(number)

    before = signal.signal(signal.SIGTERM, end)
    yield reached
    signal.signal(signal.SIGTERM, before)


async def test_signal_reaches_the_server_after_the_drain(ends: list[int]) -> None:
    reached = asyncio.Event()

    def end(number: int, _: FrameType | None) -> None:
        ends.append(number)
        reached.set()

    signal.signal(signal.SIGTERM, end)
    drain = Drain(SOON_S)
    drain.start()
    before = drain.active
    signal.raise_signal(signal.SIGTERM)
    assert (before, drain.active, ends) == (False, True, [])
    async with asyncio.timeout(60):
        await reached.wait()
    assert ends == [signal.SIGTERM]


async def test_second_signal_does_not_cut_it_short(ends: list[int]) -> None:
    drain = Drain(3600)
    drain.start()
    for _ in range(2):
        signal.raise_signal(signal.SIGTERM)
    await asyncio.sleep(0)
    assert not ends


async def test_without_a_drain_the_server_ends_at_once(ends: list[int]) -> None:
    drain = Drain(0)
    drain.start()
    signal.raise_signal(signal.SIGTERM)
    assert ends == [signal.SIGTERM]
    assert not drain.active
