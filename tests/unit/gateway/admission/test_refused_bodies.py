"""How many inputs a refused body is remembered to have had, and until when."""

import pytest

from gateway.admission.refused_bodies import RefusedBodies


class Clock:
    """Seconds that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bodies(clock: Clock) -> RefusedBodies:
    return RefusedBodies(clock)


def test_a_refused_body_is_known_by_its_subject_and_length(bodies: RefusedBodies) -> None:
    bodies.add("alice", 5000, 200, 3)
    assert bodies.inputs("alice", 5000) == 200
    assert bodies.inputs("alice", 5001) == 1
    assert bodies.inputs("bob", 5000) == 1


def test_it_is_forgotten_when_its_caller_may_retry(bodies: RefusedBodies, clock: Clock) -> None:
    bodies.add("alice", 5000, 200, 3)
    clock.now += 2.9
    assert bodies.inputs("alice", 5000) == 200
    clock.now += 0.1
    assert bodies.inputs("alice", 5000) == 1


def test_the_latest_refusal_of_a_length_holds(bodies: RefusedBodies, clock: Clock) -> None:
    bodies.add("alice", 5000, 200, 3)
    clock.now += 2
    bodies.add("alice", 5000, 4, 3)
    clock.now += 2
    assert bodies.inputs("alice", 5000) == 4


def test_a_body_of_unknown_length_is_not_remembered(bodies: RefusedBodies) -> None:
    bodies.add("alice", 0, 200, 3)
    assert bodies.inputs("alice", 0) == 1


def test_many_refusals_forget_the_oldest_and_no_more(bodies: RefusedBodies) -> None:
    for size_bytes in range(1, 2001):
        bodies.add("alice", size_bytes, 200, 3)
    sizes = [size for size in range(1, 2001) if bodies.inputs("alice", size) == 200]
    assert sizes == [*range(2001 - 1024, 2001)]
