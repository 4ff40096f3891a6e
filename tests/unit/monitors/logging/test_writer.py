"""No code waits for a line to be written, whatever the console or the disk does."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kaiten.settings.environment import ROOT
from monitors.logging import writer
from monitors.logging.writer import LineWriter, report_drops_to

# Far more than a pipe and a writer's queue hold.
_MANY, _LONG = 1000, "x" * 20_000


class Sink:
    """Takes lines, once its gate is open; fails while it is broken."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.broken = False
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        self.entered.set()
        self.gate.wait()
        if self.broken:
            raise OSError(28, "No space left on device")
        self.lines.append(line)


@pytest.fixture
def drops() -> Iterator[Counter[str]]:
    """Count dropped lines from now on."""
    counts: Counter[str] = Counter()
    report_drops_to(lambda target, count: counts.update({target: count}))
    counts.clear()
    yield counts
    report_drops_to(lambda target, count: None)


def count_of(notice: str) -> int:
    line = json.loads(notice)
    assert (line["event"], line["level"], line["logger"]) == (
        "log_lines_dropped", "warning", "kaiten.logs",
    )  # fmt: skip
    count: int = line["count"]
    return count


def test_lines_are_written_in_order(drops: Counter[str]) -> None:
    sink = Sink()
    sink.gate.set()
    writer = LineWriter("a", sink.write)
    for number in range(1000):
        writer.put(f"{number}\n")
    assert writer.drain()
    assert sink.lines == [f"{number}\n" for number in range(1000)]
    assert not drops


def test_what_does_not_fit_is_counted_and_reported_where_it_is_missing(
    drops: Counter[str],
) -> None:
    sink = Sink()
    writer = LineWriter("a", sink.write)
    for number in range(_MANY):
        writer.put(f"{number} {_LONG}\n")
        # Once it writes the first line, nothing leaves the queue until the gate opens.
        sink.entered.wait()
    sink.gate.set()
    assert writer.drain()
    *written, notice = sink.lines
    assert [int(line.split()[0]) for line in written] == [*range(len(written))]
    assert 0 < drops["a"] == count_of(notice) == _MANY - len(written)
    # The memory that a queue takes is bounded.
    assert sum(map(len, written)) < 5 << 20
    writer.put("next\n")
    assert writer.drain()
    assert sink.lines[-1] == "next\n"


def test_notice_stands_before_the_line_that_comes_next(drops: Counter[str]) -> None:
    sink = Sink()
    writer = LineWriter("a", sink.write)
    for _ in range(_MANY):
        writer.put(f"{_LONG}\n")
        sink.entered.wait()
    # One short enough for the room that is left.
    writer.put("short\n")
    sink.gate.set()
    assert writer.drain()
    assert sink.lines[-1] == "short\n"
    assert count_of(sink.lines[-2]) == drops["a"]


def test_lines_that_a_sink_refuses_are_counted_and_the_next_is_tried(
    drops: Counter[str],
) -> None:
    sink = Sink()
    sink.gate.set()
    sink.broken = True
    writer = LineWriter("a", sink.write)
    for line in ("one\n", "two\n"):
        writer.put(line)
        assert writer.drain()
    sink.broken = False
    writer.put("three\n")
    assert writer.drain()
    notice, three = sink.lines
    assert (count_of(notice), three) == (2, "three\n")
    assert drops == {"a": 2}


def test_waiting_for_a_sink_that_hangs_has_an_end() -> None:
    sink = Sink()
    writer = LineWriter("a", sink.write)
    writer.put("line\n")
    sink.entered.wait()
    assert not writer.drain(0)
    sink.gate.set()
    assert writer.drain()


def test_drops_from_before_there_are_metrics_are_handed_on() -> None:
    counts: Counter[str] = Counter()
    drops = writer._Drops()
    drops.add("console")
    drops.add("console")
    drops.report_to(lambda target, count: counts.update({target: count}))
    drops.add("console")
    assert counts == {"console": 3}


# Each of these is a process of its own: the standard streams belong to all of it.
_START = """
import faulthandler, logging, os, pathlib, sys, threading, warnings
from kaiten.settings.models import LoggingSettings
from monitors.logging import writer
from monitors.logging.setup import configure_logging
writer.detach_console()
configure_logging(LoggingSettings())
log = logging.getLogger("bentoml")
"""
_PRODUCERS = """
def fail():
    raise ValueError("a thread dies")
for number in range(int(sys.argv[1])):
    log.info("line %d", number)
    print("printed", number)
    sys.stderr.write("written " + "x" * 200 + "\\n")
    warnings.warn("warned %d" % number)
    logging.getLogger("uvicorn.error").error("of uvicorn")
    if number % 100 == 0:
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
    # As code in C does, and the interpreter in its last moments.
    try:
        os.write(2, b"raw\\n")
    except BlockingIOError:
        pass
pathlib.Path(sys.argv[2]).write_text("done")
"""


@contextmanager
def run_process(script: str, *arguments: str, console: int) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-c", _START + script, *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=console, stderr=console, stdin=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
def test_console_that_is_not_read_holds_up_nothing(kind: str, tmp_path: Path) -> None:
    reading, writing = channel(kind)
    done = tmp_path / "done"
    with run_process(_PRODUCERS, "2000", str(done), console=writing) as process:
        os.close(writing)
        # It ends by itself, although not a byte is read.
        assert process.wait(60) == 0
    assert done.read_text() == "done"
    os.close(reading)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_console_that_is_closed_holds_up_nothing(kind: str, tmp_path: Path) -> None:
    reading, writing = channel(kind)
    os.close(reading)
    done = tmp_path / "done"
    script = _PRODUCERS.replace("BlockingIOError", "OSError")
    with run_process(script, "200", str(done), console=writing) as process:
        os.close(writing)
        assert process.wait(60) == 0
    assert done.read_text() == "done"


def channel(kind: str) -> tuple[int, int]:
    """Return an end to read and one to write to."""
    if kind == "pipe":
        return os.pipe()
    if kind == "terminal":
        return os.openpty()
    reading_end, writing_end = socket.socketpair()
    return reading_end.detach(), writing_end.detach()


def run(script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", _START + script, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_all_that_waits_is_written_before_the_process_ends() -> None:
    done = run('for number in range(2000): log.info("line %d", number)\nprint("last", end="")')
    assert done.returncode == 0
    events = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert events == [f"line {number}" for number in range(2000)]
    assert done.stdout == "last"


def test_traceback_of_a_process_that_dies_is_written() -> None:
    done = run('log.info("before")\nraise ValueError("the end")')
    assert done.returncode == 1
    first, *rest = done.stderr.splitlines()
    assert json.loads(first)["event"] == "before"
    assert rest[-1] == "ValueError: the end"


def test_what_the_interpreter_writes_in_its_last_moments_is_there() -> None:
    done = run("faulthandler.enable()\nos.abort()")
    assert "Fatal Python error: Aborted" in done.stderr


def test_process_that_leaves_at_once_writes_what_it_has_if_it_says_so() -> None:
    done = run('log.error("last words")\nwriter.flush()\nos._exit(3)')
    assert done.returncode == 3
    assert json.loads(done.stderr)["event"] == "last words"


def test_lines_of_a_forked_process_are_written_once_and_those_of_its_parent_too() -> None:
    script = """
for number in range(50):
    log.info("parent %d", number)
    if (child := os.fork()) == 0:
        log.info("child %d", number)
        writer.flush()
        os._exit(0)
    os.waitpid(child, 0)
"""
    done = run(script)
    events = Counter(json.loads(line)["event"] for line in done.stderr.splitlines())
    expected_events = (
        f"{process} {number}" for process in ("parent", "child") for number in range(50)
    )
    assert events == Counter(expected_events)


def test_console_that_is_read_again_tells_how_many_lines_are_missing(tmp_path: Path) -> None:
    script = """
for number in range(30_000):
    log.info("line %d %s", number, "x" * 200)
pathlib.Path(sys.argv[1]).write_text("all logged")
"""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reading, writing = os.pipe()
    with run_process(script, str(fifo), console=writing) as process:
        os.close(writing)
        # Not a byte is read until all has been logged.
        assert fifo.read_text() == "all logged"
        with os.fdopen(reading) as console:
            events = [json.loads(line) for line in console]
        assert process.wait(60) == 0
    missing = sum(entry["count"] for entry in events if entry["event"] == "log_lines_dropped")
    numbers = [int(entry["event"].split()[1]) for entry in events if "count" not in entry]
    assert missing + len(numbers) == 30_000
    assert missing > 0
    assert numbers == sorted(numbers)
