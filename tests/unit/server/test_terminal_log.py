import json

import pytest

from server.terminal_log import LogLine, TerminalLog

TIME = "2026-11-30T20:46:26.483760Z"


class Terminal:
    """Shows what a log shows."""

    def __init__(self) -> None:
        self.lines: list[LogLine] = []
        self.log = TerminalLog(self.lines.append)

    def write(self, event: str, level: str = "info", **fields: object) -> None:
        common = {"event": event, "level": level, "timestamp": TIME}
        self.log.handle(json.dumps({"logger": "kaiten.service", **fields, **common}))

    @property
    def texts(self) -> list[str]:
        return [line.text for line in self.lines]


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


def test_start_is_facts_and_not_lines(terminal: Terminal) -> None:
    terminal.write("Applying user config override", logger="bentoml._internal")
    terminal.write("configuration_in_force", workers=2, environment="development")
    choice = {"engine": "onnx", "device": "cpu", "reason": "torch sees no CUDA device"}
    terminal.write("engine_chosen", model="intent:1.0.0", **choice)
    terminal.write("engine_chosen", model="topic:2.0.0", **choice)
    assert terminal.lines == []
    assert terminal.log.workers == 2
    assert terminal.log.engines == dict.fromkeys(
        ("intent:1.0.0", "topic:2.0.0"), "onnx on cpu: torch sees no CUDA device"
    )


def test_warning_of_the_start_is_shown_once_however_many_workers_log_it(
    terminal: Terminal,
) -> None:
    for _ in range(3):
        terminal.write("unpromoted_version_pinned", "warning", model="intent:1.0.0")
    terminal.write("unpromoted_version_pinned", "warning", model="topic:2.0.0")
    assert terminal.lines == [
        LogLine("unpromoted_version_pinned model=intent:1.0.0", "20:46:26", "warning"),
        LogLine("unpromoted_version_pinned model=topic:2.0.0", "20:46:26", "warning"),
    ]


@pytest.mark.parametrize("starting", [True, False])
@pytest.mark.parametrize("line", ["Error: [bentoml-cli] `serve` failed: no", "", "[1]", '"event"'])
def test_output_that_is_not_an_event_is_shown_unchanged(
    terminal: Terminal, line: str, *, starting: bool
) -> None:
    if not starting:
        terminal.log.end_start()
    terminal.log.handle(line)
    assert terminal.lines == [LogLine(line)]


def test_everything_is_shown_once_it_is_ready_but_the_chatter_of_bentoml(
    terminal: Terminal,
) -> None:
    terminal.write("labels_not_taken", "warning")
    terminal.log.end_start()
    terminal.write("request", route="/api/v1/predict", status=200, model=None)
    terminal.write("labels_not_taken", "warning")
    terminal.write("labels_not_taken", "warning")
    terminal.write("Running cleanup hook: stop", logger="bentoml.serve")
    terminal.write("Service failed", "error", logger="bentoml.serve")
    assert terminal.texts == [
        "labels_not_taken",
        "request route=/api/v1/predict status=200",
        "labels_not_taken",
        "labels_not_taken",
        "Service failed",
    ]


def test_value_cannot_control_the_terminal(terminal: Terminal) -> None:
    terminal.write("of\x1b[2Jwhich", "error", fault="two words", text="\x1b]0;title\x07\x9b2J")
    (line,) = terminal.lines
    quoted = r'"of\u001b[2Jwhich" fault="two words" text="\u001b]0;title\u0007\u009b2J"'
    assert line.text == quoted
