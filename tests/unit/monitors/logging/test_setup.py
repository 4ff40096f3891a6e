import json
import re
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from kaiten.settings.environment import ROOT, environment_for
from tests.unit.gateway.house import Json

CANARY = "canary-4711"
# Logging belongs to the whole process, so each test looks at one of its own.
SCRIPT = """
import logging
import sys
import structlog
from kaiten.context import RequestContext, bind
from kaiten.errors import ClientDisconnected
from kaiten.settings.models import LoggingSettings
from monitors.logging.setup import configure_logging

logger = structlog.get_logger("gateway.example")
configure_logging(LoggingSettings(level=sys.argv[1]))
configure_logging(LoggingSettings(level=sys.argv[1]))


def fail() -> None:
    raise ValueError("canary-4711")


def fail_again() -> None:
    try:
        fail()
    except ValueError as error:
        raise RuntimeError(f"because of {error}") from error


structlog.get_logger("kaiten.start").info("of_a_start")
logger.info("outside_a_request", number=1, thing=object(), text="ü\\nsecond line")
bind(RequestContext("request-1"))
logger.debug("details")
logger.info("inside_a_request")
logger.warning("warned")
logging.getLogger("bentoml").info("of %s", "bentoml")
logging.getLogger("bentoml.deeper").info("of bentoml's inside")
logging.getLogger("uvicorn.error").warning("of uvicorn\\n")
logging.getLogger("transformers").info("chatter")
logging.getLogger("transformers").warning("of transformers")
logging.getLogger("uvicorn.error").error("farewell", exc_info=ClientDisconnected())
try:
    fail_again()
except RuntimeError:
    logger.exception("ours_failed")
    logging.getLogger("uvicorn.error").error("theirs_failed", exc_info=True)
    logging.getLogger("bentoml").exception("bentoml_failed")
"""


def log_entries(level: str) -> list[Json]:
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, level],
        capture_output=True,
        check=True,
        cwd=ROOT,
        env=environment_for({"PYTHONIOENCODING": "utf-8"}),
    )
    assert process.stdout == b""
    return [json.loads(line) for line in process.stderr.splitlines()]


@pytest.fixture(scope="module")
def entries() -> list[Json]:
    return log_entries("info")


def entry_of(entries: list[Json], event: str) -> Json:
    (entry,) = [entry for entry in entries if entry["event"] == event]
    return entry


def test_every_line_says_what_when_and_how_bad(entries: list[Json]) -> None:
    for entry in entries:
        assert {"event", "level", "timestamp", "logger"} <= set(entry)
        assert datetime.fromisoformat(entry["timestamp"]).utcoffset() == timedelta(0)
        assert entry["level"] in {"info", "warning", "error"}


def test_a_line_keeps_what_it_was_given(entries: list[Json]) -> None:
    entry = entry_of(entries, "outside_a_request")
    assert (entry["number"], entry["text"]) == (1, "ü\nsecond line")
    assert (entry["level"], entry["logger"]) == ("info", "gateway.example")


def test_a_line_within_a_request_has_its_id(entries: list[Json]) -> None:
    events = [entry["event"] for entry in entries if "request_id" not in entry]
    assert events == ["of_a_start", "outside_a_request"]
    assert {entry["request_id"] for entry in entries if "request_id" in entry} == {"request-1"}


@pytest.mark.parametrize(
    ("event", "name", "level"),
    [
        ("of bentoml", "bentoml", "info"),
        ("of bentoml's inside", "bentoml.deeper", "info"),
        ("of uvicorn\n", "uvicorn.error", "warning"),
        ("of transformers", "transformers", "warning"),
    ],
)
def test_other_loggers_take_the_same_form(
    entries: list[Json], event: str, name: str, level: str
) -> None:
    entry = entry_of(entries, event)
    assert (entry["logger"], entry["level"]) == (name, level)
    assert entry["request_id"] == "request-1"


@pytest.mark.parametrize("event", ["ours_failed", "theirs_failed", "bentoml_failed"])
def test_an_exception_is_logged_by_type_and_place(entries: list[Json], event: str) -> None:
    entry = entry_of(entries, event)
    assert (entry["level"], entry["error"]) == ("error", "RuntimeError")
    assert entry["raised_at"][-1].endswith(" in fail_again")
    assert "exception" not in entry


def test_an_exceptions_message_is_not_logged(entries: list[Json]) -> None:
    assert CANARY not in json.dumps(entries)


@pytest.mark.parametrize(
    ("level", "expected_events"),
    [
        ("debug", {"details", "inside_a_request", "warned", "ours_failed"}),
        ("info", {"inside_a_request", "warned", "ours_failed"}),
        ("warning", {"warned", "ours_failed"}),
        ("error", {"ours_failed"}),
    ],
)
def test_the_level_chooses_what_is_logged(level: str, expected_events: set[str]) -> None:
    events = {
        entry["event"] for entry in log_entries(level) if entry["logger"] == "gateway.example"
    }
    assert events - {"outside_a_request"} == expected_events


def test_an_answer_that_finds_its_caller_gone_is_no_failure(entries: list[Json]) -> None:
    assert "farewell" not in {entry["event"] for entry in entries}


def test_chatter_of_libraries_is_left_out(entries: list[Json]) -> None:
    assert "chatter" not in {entry["event"] for entry in entries}


ACTS = """
import sys
from pathlib import Path
from gateway.security_log import PER_SOURCE, log_event, log_operator_action
from kaiten.settings.models import LoggingSettings
from monitors.logging.setup import add_audit_file, configure_logging
configure_logging(LoggingSettings())
add_audit_file(Path(sys.argv[1]))
for number in range(3 * PER_SOURCE):
    log_event("token_rejected", "size")
    log_operator_action("revoked", number=number)
"""


def test_acts_of_operators_have_a_file_of_their_own(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ACTS, str(tmp_path)]
    # Two commands, as an operator gives them.
    for _ in range(2):
        subprocess.run(command, capture_output=True, check=True, cwd=ROOT)
    (file,) = tmp_path.iterdir()
    entries = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert file.name == "audit.log"
    assert [entry["number"] for entry in entries] == 2 * [*range(30)]
    assert {entry["event"] for entry in entries} == {"revoked"}
    assert file.stat().st_mode & 0o777 == 0o600


COMMAND = """
import sys
from pathlib import Path
import structlog
from gateway.security_log import log_operator_action
from monitors.logging.setup import add_audit_file, configure_command_logging
configure_command_logging()
log_operator_action("unseen")
add_audit_file(Path(sys.argv[1]))
log_operator_action("revoked", key_id="1")
structlog.get_logger("lifecycle.audit_log").info("audit_log_appended", number=7)
structlog.get_logger("lifecycle.signatures").warning("unsigned_version", model="a:1", why="no key")
structlog.get_logger("runners.engines").info("engine_opened")
"""


def test_command_logs_warnings_as_text_and_operators_actions_to_their_file(tmp_path: Path) -> None:
    command = [sys.executable, "-c", COMMAND, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, check=True, cwd=ROOT, text=True)
    assert done.stdout == ""
    assert done.stderr == 'warning: unsigned_version model=a:1 why="no key"\n'
    lines = (tmp_path / "audit.log").read_text("utf-8").splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert events == ["revoked", "audit_log_appended"]


SPINNER = """
import structlog
from rich.console import Console
from monitors.logging.setup import configure_command_logging
configure_command_logging()
with Console(stderr=True, force_terminal=True, width=100).status("Working ..."):
    structlog.get_logger("lifecycle.signatures").warning("unsigned_version", model="a:1")
"""


def test_warning_during_a_spinner_has_a_line_of_its_own() -> None:
    command = [sys.executable, "-c", SPINNER]
    env = environment_for({"PYTHONIOENCODING": "utf-8", "TERM": "xterm"})
    done = subprocess.run(command, capture_output=True, check=True, cwd=ROOT, env=env)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", done.stderr.decode())
    lines = [line for line in re.split(r"[\r\n]+", text) if line]
    frames = [line for line in lines if "Working ..." in line]
    assert [line for line in lines if line not in frames] == ["warning: unsigned_version model=a:1"]
    assert frames
    assert all(re.fullmatch(r"\S Working \.\.\.", frame) for frame in frames)


@pytest.mark.parametrize("level", ["debug", "error"])
def test_facts_of_a_start_are_logged_at_every_level(level: str) -> None:
    events = [entry["event"] for entry in log_entries(level)]
    assert "of_a_start" in events
