"""`kaiten serve` at a terminal: a start in a few lines, and a log for a person."""

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.servers import BIN, READY_LIMIT_S, ROOT, STOP_LIMIT_S, environment, free_port

# Colours, the spinner's movements of the cursor, and what makes them visible.
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass
class Terminal:
    """The screen of a command, line by line without control sequences, as they come."""

    url: str
    popen: subprocess.Popen[bytes]
    lines: list[str] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _ended: bool = False

    def follow(self, descriptor: int) -> None:
        rest = ""
        while content := _read(descriptor):
            *lines, rest = re.split(r"[\r\n]+", rest + content)
            self._add(lines)
        self._add([rest], ended=True)

    def _add(self, lines: list[str], *, ended: bool = False) -> None:
        with self._changed:
            self.lines += filter(None, (_CONTROL.sub("", line).rstrip() for line in lines))
            self._ended = ended
            self._changed.notify_all()

    def wait_for(self, pattern: str) -> str:
        """Return the first line that holds the pattern, once there is one."""

        def matching() -> list[str]:
            return [line for line in self.lines if re.search(pattern, line)]

        with self._changed:
            self._changed.wait_for(lambda: matching() or self._ended, READY_LIMIT_S)
            assert matching(), "\n".join(["no " + pattern, *self.lines[-40:]])
            return matching()[0]


def _read(descriptor: int) -> str:
    try:
        return os.read(descriptor, 1 << 16).decode(errors="replace")
    except OSError:
        # The last process that has the terminal has ended.
        return ""


@pytest.fixture(scope="module")
def terminal(bentoml_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    env = environment(bentoml_home, tmp_path_factory.mktemp("home"), TERM="xterm", COLUMNS="200")
    # The start's facts are shown at every level.
    env["KAITEN_LOGGING__LEVEL"] = "warning"
    port = free_port()
    screen, descriptor = os.openpty()
    popen = subprocess.Popen(
        [str(BIN / "kaiten"), "serve", "--port", str(port)],
        env=env,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=descriptor,
        stderr=descriptor,
        start_new_session=True,
    )
    os.close(descriptor)
    terminal = Terminal(f"http://127.0.0.1:{port}", popen)
    reader = threading.Thread(target=terminal.follow, args=(screen,), daemon=True)
    reader.start()
    try:
        terminal.wait_for(r"^Stop with Ctrl-C\.")
        yield terminal
    finally:
        if popen.poll() is None:
            os.killpg(popen.pid, signal.SIGTERM)
        popen.wait(STOP_LIMIT_S)
        reader.join()
        os.close(screen)


def test_start_names_the_model_its_engine_the_workers_and_the_address(terminal: Terminal) -> None:
    assert terminal.wait_for("^model ").startswith("model    support-intent:1.0.0, onnx on cpu: ")
    assert terminal.wait_for("^workers ") == "workers  1"
    assert terminal.wait_for("^address ") == f"address  {terminal.url}"


def test_no_line_is_json_and_no_poll_of_the_command_is_logged(terminal: Terminal) -> None:
    lines = [line for line in terminal.lines if "Starting ..." not in line]
    start = lines[: lines.index("Stop with Ctrl-C.") + 1]
    assert not [line for line in start if line.startswith("{") or "readyz" in line]
    # Both the parent process and the worker log it: the version was never promoted.
    (warning,) = [line for line in start if "unpromoted" in line]
    assert warning.endswith("warning  unpromoted_version_pinned model=support-intent:1.0.0")
    assert len(start) <= 12


def test_spinner_has_its_lines_alone(terminal: Terminal) -> None:
    frames = [line for line in terminal.lines if "Starting ..." in line]
    assert frames
    assert [frame for frame in frames if not re.fullmatch(r"\S? ?Starting \.\.\.", frame)] == []


def test_later_events_are_text_too(terminal: Terminal) -> None:
    answer = httpx.post(f"{terminal.url}/api/v1/predict", headers={"Authorization": "Bearer x.y.z"})
    assert answer.status_code == 401
    line = terminal.wait_for("token_rejected")
    assert re.fullmatch(r"\d\d:\d\d:\d\d  warning  token_rejected fault=\w+ .*", line)
