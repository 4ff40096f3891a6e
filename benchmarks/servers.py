"""Starting one server, watching what it takes, and ending all of it."""

import contextlib
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from benchmarks import places
from benchmarks.catalogue import Configuration, Server

_MARK = "BENCHMARKED_SERVER"
_READY_LIMIT_S = 180
_STOP_LIMIT_S = 30
_POLL_S = 0.05
_MIB = 2**20


class ServerFailed(Exception):
    """A server did not install, start, answer or end; the message ends in its last lines."""


@dataclass
class Running:
    """A server that answers."""

    server: Server
    configuration: Configuration
    port: int
    mark: str
    log: Path
    headers: dict[str, str] = field(default_factory=dict)
    ready_s: float = 0.0
    peak_mb: float = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def processes(self) -> list[psutil.Process]:
        """Return every process of the server, also those that left its tree."""
        return [process for process in psutil.process_iter() if _marked(process, self.mark)]

    def memory_mb(self) -> float:
        """Return the memory of its processes now, in MiB.

        The proportional set size shares a page out over all that map it, also those that are not
        part of the server, such as the offline process that maps the same model. So for a server of
        one worker what it has resident counts if that is more.
        """
        total = largest = 0
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                memory = process.memory_full_info()
                total += memory.pss
                largest = max(largest, memory.rss)
        total = max(total, largest)
        self.peak_mb = max(self.peak_mb, total / _MIB)
        return total / _MIB

    def cpu_s(self) -> float:
        """Return the CPU seconds that its living processes have taken."""
        total = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def ask(self, client: httpx.Client, texts: list[str]) -> list[str]:
        """Return the labels that it gives; raises httpx.HTTPError."""
        call = self.server.call(len(texts))
        answer = client.post(self.url + call.path, json=call.body(texts), headers=self.headers)
        answer.raise_for_status()
        return call.labels(answer.json())


def _marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(_MARK) == mark
    except (psutil.Error, OSError):
        return False


@contextmanager
def running(
    server: Server,
    configuration: Configuration,
    values: dict[str, str],
    headers: dict[str, str] | None = None,
    ready_limit_s: float = _READY_LIMIT_S,
) -> Iterator[Running]:
    """Start a server, yield it once it has labelled a text, and end it whatever happens."""
    port, mark = _free_port(), uuid.uuid4().hex
    log = places.LOGS / f"{server.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    instance = Running(server, configuration, port, mark, log, headers or {})
    started = time.perf_counter()
    popen = _start(instance, values)
    try:
        _wait_until_it_answers(instance, popen, ready_limit_s)
        instance.ready_s = time.perf_counter() - started
        yield instance
    finally:
        _stop(instance, popen)


def _start(instance: Running, values: dict[str, str]) -> subprocess.Popen[bytes]:
    server, folder = instance.server, places.ENVIRONMENTS / instance.server.name
    home = folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    filled = {
        **values,
        **instance.configuration.env,
        "port": str(instance.port),
        "venv": str(folder / "venv" / "bin"),
        "home": str(home),
    }
    env = places.environment(
        PATH=f"{folder / 'venv' / 'bin'}:{places.PYTHON.parent}:/usr/local/bin:/usr/bin:/bin",
        **{_MARK: instance.mark},
        **instance.configuration.env,
        **{name: value.format(**filled) for name, value in server.env.items()},
    )
    command = [part.format(**filled) for part in server.command]
    cwd = server.folder.format(**filled)
    with instance.log.open("wb") as log:
        return subprocess.Popen(
            command, env=env, cwd=cwd, stdout=log, stderr=log, start_new_session=True
        )


def _wait_until_it_answers(
    instance: Running, popen: subprocess.Popen[bytes], limit_s: float
) -> None:
    end = time.perf_counter() + limit_s
    with httpx.Client(timeout=limit_s, trust_env=False) as client:
        while time.perf_counter() < end:
            if popen.poll() is not None:
                raise ServerFailed(f"It ended with code {popen.returncode}.\n{tail(instance.log)}")
            with contextlib.suppress(httpx.HTTPError):
                if client.get(instance.url + instance.server.ready).is_success:
                    instance.ask(client, ["Is it ready?"])
                    return
            time.sleep(_POLL_S)
    raise ServerFailed(f"No answer within {limit_s:.0f} s.\n{tail(instance.log)}")


def _stop(instance: Running, popen: subprocess.Popen[bytes]) -> None:
    """Ask it to end, kill the remaining processes by id, and check that its port is free."""
    if popen.poll() is None:
        popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            popen.wait(_STOP_LIMIT_S)
    processes = instance.processes()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=_STOP_LIMIT_S)
    popen.wait(_STOP_LIMIT_S)
    if not _is_free(instance.port):
        raise ServerFailed(
            f"{instance.server.name} ended, and something still has port {instance.port}."
        )


def tail(log: Path, lines: int = 8) -> str:
    """Return the last lines of a log, each cut to a sensible width."""
    last_lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    return "\n".join(line[:300] for line in last_lines)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
