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


class RunOutput:
    """What a run left on the console and in the files."""

    def __init__(self, folder: Path, level: str = "info", addresses: str = "cut") -> None:
        command = [sys.executable, "-c", SCRIPT, str(folder / "logs"), level, addresses]
        process = subprocess.run(command, capture_output=True, check=True, cwd=ROOT, text=True)
        self.all = process.stderr
        self.console = [json.loads(line) for line in process.stderr.splitlines()]
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
def output(tmp_path_factory: pytest.TempPathFactory) -> RunOutput:
    return RunOutput(tmp_path_factory.mktemp("written"))


def test_a_requests_line_says_who_asked_what_and_how_it_went(output: RunOutput) -> None:
    line = dict(output.requests[0])
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


def test_a_request_without_a_trace_has_none(output: RunOutput) -> None:
    line = next(entry for entry in output.requests if entry["route"] == V2)
    assert "trace_id" not in line
    assert line["request_id"]


def test_the_file_has_what_the_console_has(output: RunOutput) -> None:
    for name in ("request", "security"):
        console = [entry for entry in output.console if entry["logger"] == f"kaiten.{name}"]
        assert console == (output.requests if name == "request" else output.security)
        assert console


def test_security_events_that_repeat_are_counted_and_none_is_missing(output: RunOutput) -> None:
    rejected = [entry for entry in output.security if entry["event"] == "token_rejected"]
    assert len(rejected) == PER_SOURCE + 2 + 1
    assert sum(entry.get("repeated", 1) for entry in rejected) == 22


def test_security_events_have_one_shape(output: RunOutput) -> None:
    forbidden = next(entry for entry in output.security if entry["event"] == "forbidden")
    assert (forbidden["fault"], forbidden["subject"]) == ("lacks predict", ALICE)
    for entry in output.security:
        shape = {"event", "level", "logger", "timestamp", "fault", "route", "request_id"}
        extra_fields = {"subject"} if entry is forbidden else set()
        assert set(entry) - {"repeated"} == shape | {"client"} | extra_fields


def test_of_an_address_only_its_network_is_kept(output: RunOutput) -> None:
    clients = {entry["client"] for entry in output.security}
    assert clients == {"203.0.113.0/24", "2001:db8:1::/48", None}
    assert CLIENT not in output.all


def test_no_line_holds_a_text_a_token_a_secret_or_a_subject(output: RunOutput) -> None:
    texts = output.all + json.dumps(output.files)
    # Every token of this run begins alike, by its header.
    for private in (CANARY, SECRET, "alice", bearer("predict")[:30]):
        assert private not in texts


def test_addresses_are_kept_where_the_settings_say_so_whatever_the_level(tmp_path: Path) -> None:
    output = RunOutput(tmp_path, level="error", addresses="whole")
    clients = {entry["client"] for entry in output.security}
    assert clients == {CLIENT, "2001:db8:1:2::3", None}
    assert {entry["event"] for entry in output.console} == {"token_rejected", "forbidden"}
