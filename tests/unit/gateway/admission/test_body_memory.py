import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission.body_memory import BodyMemory
from kaiten.errors import BodyMemoryFull
from tests.unit.gateway.house import (
    GOOD,
    LIMITS,
    PREDICTIONS,
    V1,
    FakeMetrics,
    House,
    Stuck,
    bearer,
    error_of,
)

FEEDBACK = "/api/v2/feedback"
LARGEST = 100
SMALL = LIMITS.model_copy(update={"max_body_bytes": 1000, "max_body_memory_bytes": 2000})


def memory(limit_bytes: int = 1200) -> tuple[BodyMemory, FakeMetrics]:
    watch = FakeMetrics()
    return BodyMemory(limit_bytes, LARGEST, watch), watch


def test_subject_alone_may_hold_half_of_all_but_room_for_a_largest_body() -> None:
    bodies, watch = memory()
    with bodies.reservation("a") as reservation:
        reservation.grow_to(550)
        with pytest.raises(BodyMemoryFull):
            reservation.grow_to(551)
        assert watch.body_sizes[-1] == 550
    assert (watch.body_sizes[-1], watch.refused_bodies) == (0, 1)


def test_subjects_that_hold_all_that_they_may_leave_room_for_a_largest_body() -> None:
    bodies, watch = memory()
    sizes = [_fill_share(bodies, subject) for subject in "abcde"]
    # Half, by turns, and never less than one body.
    assert sizes == [550, 275, 137, LARGEST, LARGEST]
    assert watch.body_sizes[-1] == sum(sizes)


def test_newcomer_sends_a_largest_body_in_parts_beside_those_that_hold_more() -> None:
    bodies, _ = memory()
    for subject in "abc":
        _fill_share(bodies, subject)
    newcomer = bodies.reservation("newcomer")
    for size in range(10, LARGEST + 1, 10):
        newcomer.grow_to(size)
    with pytest.raises(BodyMemoryFull):
        newcomer.grow_to(LARGEST + 1)


def _fill_share(bodies: BodyMemory, subject: str) -> int:
    size = 0
    with contextlib.suppress(BodyMemoryFull):
        while True:
            bodies.reservation(subject).grow_to(1)
            size += 1
    return size


def test_reservation_counts_growth_once() -> None:
    bodies, watch = memory()
    with bodies.reservation("a") as reservation:
        for size in (100, 300, 200, 300):
            reservation.grow_to(size)
    assert watch.body_sizes == [100, 300, 0]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 700)), max_size=30))
def test_never_over_the_limit_and_all_of_it_is_given_back(growths: list[tuple[str, int]]) -> None:
    bodies, watch = memory()
    reservations = []
    for subject, size in growths:
        reservation = bodies.reservation(subject)
        reservations.append(reservation)
        with contextlib.suppress(BodyMemoryFull):
            reservation.grow_to(size)
    assert max(watch.body_sizes, default=0) <= 1200
    for reservation in reservations:
        with reservation:
            pass
    assert not watch.body_sizes or watch.body_sizes[-1] == 0


async def _start_endless_request(
    house: House, path: str, body: bytes, **headers: str
) -> "asyncio.Task[object]":
    """Send a body that never ends."""

    next_read = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield body
        # The server asks for more once it has reserved these bytes.
        next_read.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(house.post(path, endless(), headers))
    await next_read.wait()
    return task


async def _end(task: "asyncio.Task[object]") -> None:
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize("path", [*PREDICTIONS, FEEDBACK])
async def test_body_beyond_the_memory_is_refused_unread(path: str) -> None:
    reads: list[int] = []

    async def body() -> AsyncIterator[bytes]:
        reads.append(1)
        yield b"{}"

    house = House(gateway=SMALL)
    allowed = {"Authorization": bearer("predict", "feedback")}
    pending_request = await _start_endless_request(house, V1, b"{", **{"Content-Length": "900"})
    answer = await house.post(path, body(), {"Content-Length": "500", **allowed})
    assert (answer.status_code, error_of(answer)["code"]) == (429, "body_memory_full")
    assert answer.headers["Retry-After"] == "1"
    assert (reads, house.metrics.refused_bodies) == ([], 1)
    await _end(pending_request)
    assert house.metrics.body_sizes[-1] == 0


async def test_body_in_chunks_is_refused_as_it_grows() -> None:
    house = House(gateway=SMALL)
    pending_request = await _start_endless_request(house, V1, b"x" * 600)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b" " * 100

    answer = await house.post(V1, body())
    assert error_of(answer)["code"] == "body_memory_full"
    assert max(house.metrics.body_sizes) <= 1000
    await _end(pending_request)
    assert house.metrics.body_sizes[-1] == 0


async def test_another_subject_is_answered_beside_one_that_holds_its_share() -> None:
    house = House(gateway=SMALL)
    pending_request = await _start_endless_request(house, V1, b"x" * 1000)
    alices_answer = await house.post(
        V1, GOOD[V1], {"Authorization": bearer("predict", subject="alice")}
    )
    bobs_answer = await house.post(
        V1, GOOD[V1], {"Authorization": bearer("predict", subject="bob")}
    )
    assert (alices_answer.status_code, bobs_answer.status_code) == (429, 200)
    await _end(pending_request)


async def test_body_counts_until_its_request_has_ended() -> None:
    stuck = Stuck()
    house = House(stuck, gateway=SMALL, request_timeout_s=0.05)
    request = asyncio.create_task(house.post(V1, GOOD[V1]))
    await stuck.predict_started.wait()
    assert house.metrics.body_sizes[-1] > 0
    assert (await request).status_code == 504
    assert house.metrics.body_sizes[-1] == 0


@pytest.mark.parametrize("body", [b"{", b'{"text": 1}', b"x" * 2000])
async def test_refused_body_is_given_back(body: bytes) -> None:
    house = House(gateway=SMALL)
    assert (await house.post(V1, body)).status_code in (400, 413, 422)
    assert house.metrics.body_sizes[-1:] in ([], [0])
