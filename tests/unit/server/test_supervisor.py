"""The supervisor that BentoML starts the workers with: real ones, in processes of their own."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import pytest
from bentoml._internal.utils import circus as bentoml_circus
from circus.arbiter import Arbiter  # type: ignore[import-untyped]
from structlog.testing import capture_logs

from kaiten.errors import SetupError
from kaiten.settings.environment import ROOT
from server.supervisor import announce_addresses, secure

# Read and tried with these. After an upgrade, read server/supervisor.py beside circus/arbiter.py,
# circus/watcher.py and bentoml/_internal/utils/circus, run tests/e2e/test_supervisor.py, and
# change them here.
TRIED = {"bentoml": "1.4.39", "kantoku": "0.18.3"}


def run_program(program: str) -> dict[str, Any]:
    """Run a program that says what it finds as JSON; ``secure`` has been called."""
    script = (
        "import json, sys, psutil\n"
        "from server.supervisor import secure\n"
        "secure()\n"
        "secure()\n"
        "from bentoml._internal.utils.circus import create_standalone_arbiter\n"
        f"{program}\n"
        "print(json.dumps(result))\n"
    )
    command = [sys.executable, "-c", script]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


LISTENING = """
import os, stat
from pathlib import Path
arbiter = create_standalone_arbiter([], plugins=plugins, threaded=threaded)
arbiter.initialize()
arbiter.ctrl.initialize()
tcp = [c for c in psutil.Process().net_connections("inet") if c.status == "LISTEN"]
unix = [c.laddr for c in psutil.Process().net_connections("unix") if c.laddr]
result = {
    "endpoint": arbiter.endpoint, "events": arbiter.pubsub_endpoint, "tcp": len(tcp), "unix": unix,
    "modes": [stat.S_IMODE(Path(path).parent.stat().st_mode) for path in unix],
}
"""


@pytest.mark.parametrize("threaded", [False, True])
def test_supervisor_listens_nowhere(*, threaded: bool) -> None:
    result = run_program(f"plugins, threaded = None, {threaded}\n{LISTENING}")
    assert result["endpoint"].startswith("inproc://")
    assert result["events"].startswith("inproc://")
    assert (result["tcp"], result["unix"]) == (0, [])


def test_plugin_connects_through_a_folder_of_this_account_alone() -> None:
    plugin = '[{"use": "circus.plugins.flapping.Flapping"}]'
    result = run_program(
        f"import os\nos.umask(0)\nplugins, threaded = {plugin}, False\n{LISTENING}"
    )
    assert result["endpoint"].removeprefix("ipc://") in result["unix"]
    assert result["events"].removeprefix("ipc://") in result["unix"]
    assert result["tcp"] == 0
    assert result["modes"] == [0o700, 0o700]


PROCESSES = """
from circus.watcher import Watcher
import bentoml.serving, os
os.environ["BENTOML_CONTAINERIZED"] = "true"
arbiter = create_standalone_arbiter([
    bentoml.serving.create_watcher("service", ["-c", "raise SystemExit(3)"], cmd=command)
])
(watcher,) = arbiter.watchers
watcher._status = "active"
started = watcher.spawn_process()
pids = list(watcher.processes)
for pid in pids:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
watcher.reap_processes()
result = {"respawn": watcher.respawn, "stopped": started is False, "processes": len(pids)}
"""


def test_process_is_replaced_in_a_container_too_and_its_end_logged() -> None:
    log = "import structlog\nlines = []\n"
    log += "structlog.configure(processors=[lambda _, __, event: lines.append(event) or ''])\n"
    result = run_program(f"{log}command = sys.executable\n{PROCESSES}\nresult['log'] = lines")
    assert (result["respawn"], result["stopped"], result["processes"]) == (True, False, 1)
    assert [(line["event"], line["code"]) for line in result["log"]] == [("worker_ended", 3)]


def test_process_that_cannot_be_started_does_not_stop_the_others() -> None:
    result = run_program(f"command = '/nowhere/python'\n{PROCESSES}")
    assert (result["respawn"], result["stopped"], result["processes"]) == (True, False, 0)


@pytest.mark.parametrize(
    ("family", "name", "address"),
    [
        (socket.AF_INET, ("0.0.0.0", 3000), "http://0.0.0.0:3000"),
        (socket.AF_INET, ("127.0.0.1", 8080), "http://127.0.0.1:8080"),
        (socket.AF_INET6, ("::", 3000, 0, 0), "http://[::]:3000"),
    ],
)
def test_log_names_the_address_that_the_server_listens_on(
    family: int, name: tuple[object, ...], address: str
) -> None:
    listener = SimpleNamespace(family=family, getsockname=lambda: name)
    inner = SimpleNamespace(family=socket.AF_UNIX)
    arbiter = SimpleNamespace(sockets={"inner": inner, "outer": listener})

    def start(_: object, callback: Callable[[object], None]) -> str:
        callback(None)
        return "started"

    with capture_logs() as logs:
        # BentoML's callback would name localhost.
        assert announce_addresses(start)(arbiter, pytest.fail) == "started"
    assert logs == [{"event": "listening", "address": address, "log_level": "info"}]


def test_start_is_refused_where_bentoml_starts_workers_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(bentoml_circus, "create_standalone_arbiter")
    with pytest.raises(SetupError, match="cannot be taken off the network"):
        secure()


def test_start_is_refused_where_circus_takes_other_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def init(self: object, watchers: object, address: str) -> None: ...

    monkeypatch.setattr(Arbiter, "__init__", init)
    with pytest.raises(SetupError, match=r"constraints\.txt"):
        secure()


def test_versions_are_those_that_this_was_tried_with() -> None:
    assert {name: version(name) for name in TRIED} == TRIED
