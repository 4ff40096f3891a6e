"""Some hundred requests and tokens; `make acceptance SUITE=fuzz` throws them for five minutes."""

import random

import pytest

from tests.acceptance.forgeries import Forger
from tests.acceptance.fuzz import Fuzzer, failures_in
from tests.e2e.house import Server

pytestmark = pytest.mark.e2e
CASES = 300


async def test_what_nobody_would_send_harms_nobody(server: Server) -> None:
    before = len(server.process.lines)
    found = await Fuzzer.of(server).throw(cases=CASES)

    assert sum(ends.total() for ends in found.tokens.values()) == CASES
    assert sum(ends.total() for ends in found.requests.values()) >= CASES
    assert found.failures == {}
    assert found.let_in == []
    assert set(found.bystander) == {"200"}
    assert failures_in(server.process.lines[before:]) == []


def test_one_seed_makes_one_row_of_forgeries() -> None:
    first, second = (iter(Forger(random.Random(7), b"x")) for _ in range(2))
    assert [next(first) for _ in range(50)] == [next(second) for _ in range(50)]


def test_failures_are_found_in_a_log() -> None:
    bad = ['{"event": "request_failed", "level": "error"}', "Traceback (most recent call last):"]
    assert failures_in([*bad, '{"event": "request", "level": "info"}']) == bad
