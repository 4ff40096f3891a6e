"""The edge's own lines, as they stand on the console and in a worker's files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.security_log import PER_SOURCE
from kaiten.pseudonyms import Pseudonyms
from kaiten.settings.environment import ROOT
from tests.unit.gateway.house import SECRET, TAG, V1, V2, Json, bearer

CANARY = "canary-4711"
CLIENT = "203.0.113.9"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
ALICE = Pseudonyms(b"key").of("kaiten|alice")
# Logging belongs to the whole process, so each run has one of its own.
SCRIPT = f"""
import asyncio, sys
from pathlib import Path
from kaiten.pseudonyms import Pseudonyms
from kaiten.settings.models import LoggingSettings
from gateway.security_log import security_log
from monitors.logging.setup import configure_logging
from tests.unit.gateway.house import House, V1, V2, bearer

folder, level, addresses = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "whole"
settings = LoggingSettings(folder=folder, level=level, client_addresses=addresses)
# As service.py does: once while it is imported, and once in the worker.
configure_logging(settings)
configure_logging(settings, Pseudonyms(b"key"), 3)


async def main() -> None:
    house = House()
    trace = {{"traceparent": "00-{TRACE}-00f067aa0ba902b7-01", "X-Request-ID": "traced"}}
    await house.post(V1, {{"text": "{CANARY}"}}, trace, client="{CLIENT}")
    await house.post(V2, {{"inputs": ["{CANARY}"]}}, client="{CLIENT}")
    await house.post(V1, {{"text": "{CANARY}"}}, {{"Authorization": bearer("ops")}}, "{CLIENT}")
    for _ in range(20):
        await house.post(V1, {{}}, {{"Authorization": "Bearer {CANARY}"}}, "::ffff:{CLIENT}")
    await house.ask("GET", "/{CANARY}?text={CANARY}", client="{CLIENT}")
    await house.post(V1, {{}}, {{"Authorization": "Bearer x"}}, client="2001:db8:1:2::3")
    await house.post(V1, {{}}, {{"Authorization": "Bearer x"}}, client="{CANARY}")
    security_log.end_period()

asyncio.run(main())
"""


class Written:
    """What a run left on the console and in the files."""

    def __init__(self, folder: Path, level: str = "info", addresses: str = "cut") -> None:
        command = [sys.executable, "-c", SCRIPT, str(folder / "logs"), level, addresses]
        done = subprocess.run(command, capture_output=True, check=True, cwd=ROOT, text=True)
        self.all = done.stderr
        self.console = [json.loads(line) for line in done.stderr.splitlines()]
        self.files = {
            path.name: [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            for path in (folder / "logs").iterdir()
        }

    @property
    def requests(self) -> list[Json]:
        return self.files["requests-3.log"]

    @property
    def security(self) -> list[Json]:
        return self.files["security-3.log"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return Written(tmp_path_factory.mktemp("written"))


def test_a_requests_line_says_who_asked_what_and_how_it_went(written: Written) -> None:
    line = dict(written.requests[0])
    assert line.pop("duration_ms") > 0
    assert line.pop("timestamp")
    assert line == {
        "event": "request",
        "level": "info",
        "logger": "kaiten.request",
        "method": "POST",
        "route": V1,
        "status": 200,
        "model": TAG,
        "subject": ALICE,
        "request_id": "traced",
        "trace_id": TRACE,
        "left_out": 0,
    }


def test_a_request_without_a_trace_has_none(written: Written) -> None:
    line = next(each for each in written.requests if each["route"] == V2)
    assert "trace_id" not in line
    assert line["request_id"]


def test_the_file_has_what_the_console_has(written: Written) -> None:
    for name in ("request", "security"):
        console = [each for each in written.console if each["logger"] == f"kaiten.{name}"]
        assert console == (written.requests if name == "request" else written.security)
        assert console


def test_security_events_that_repeat_are_counted_and_none_is_missing(written: Written) -> None:
    rejected = [each for each in written.security if each["event"] == "token_rejected"]
    assert len(rejected) == PER_SOURCE + 2 + 1
    assert sum(each.get("repeated", 1) for each in rejected) == 22


def test_security_events_have_one_shape(written: Written) -> None:
    forbidden = next(each for each in written.security if each["event"] == "forbidden")
    assert (forbidden["fault"], forbidden["subject"]) == ("lacks predict", ALICE)
    for each in written.security:
        shape = {"event", "level", "logger", "timestamp", "fault", "route", "request_id"}
        more = {"subject"} if each is forbidden else set()
        assert set(each) - {"repeated"} == shape | {"client"} | more


def test_of_an_address_only_its_network_is_kept(written: Written) -> None:
    clients = {each["client"] for each in written.security}
    assert clients == {"203.0.113.0/24", "2001:db8:1::/48", None}
    assert CLIENT not in written.all


def test_no_line_holds_a_text_a_token_a_secret_or_a_subject(written: Written) -> None:
    everything = written.all + json.dumps(written.files)
    # Every token of this run begins alike, by its header.
    for private in (CANARY, SECRET, "alice", bearer("predict")[:30]):
        assert private not in everything


def test_addresses_are_kept_where_the_settings_say_so_whatever_the_level(tmp_path: Path) -> None:
    written = Written(tmp_path, level="error", addresses="whole")
    clients = {each["client"] for each in written.security}
    assert clients == {CLIENT, "2001:db8:1:2::3", None}
    assert {each["event"] for each in written.console} == {"token_rejected", "forbidden"}
