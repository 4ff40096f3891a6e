"""Some hundred requests and tokens; `make acceptance SUITE=fuzz` throws them for five minutes."""

import random
from pathlib import Path

from tests.acceptance.forgeries import Forger
from tests.acceptance.fuzz import Fuzzer, failures_in
from tests.acceptance.places import serve

CASES = 200


async def test_what_nobody_would_send_harms_nobody(bentoml_home: Path, tmp_path: Path) -> None:
    # A server of its own: the others' tests find what they look for in their log.
    with serve(bentoml_home, tmp_path) as server:
        findings = await Fuzzer.of(server.server).throw(cases=CASES)
        log = list(server.server.process.lines)

    assert sum(ends.total() for ends in findings.tokens.values()) == CASES
    assert sum(ends.total() for ends in findings.requests.values()) >= CASES
    assert findings.failures == {}
    assert findings.let_in == []
    assert set(findings.bystander) == {"200"}
    assert failures_in(log) == []


def test_one_seed_makes_one_row_of_forgeries() -> None:
    first, second = (iter(Forger(random.Random(7), b"x")) for _ in range(2))
    assert [next(first) for _ in range(50)] == [next(second) for _ in range(50)]


def test_failures_are_found_in_a_log() -> None:
    bad = ['{"event": "request_failed", "level": "error"}', "Traceback (most recent call last):"]
    assert failures_in([*bad, '{"event": "request", "level": "info"}']) == bad
