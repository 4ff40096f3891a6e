"""Starts real servers of this checkout, and waits for what they say."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import IO

import httpx
from filelock import FileLock
from prometheus_client.parser import text_string_to_metric_families

from gateway.auth.minting import mint
from kaiten.settings.models import AuthSettings

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "examples" / "quickstart"
BIN = Path(sys.executable).parent
READY_LIMIT_S = 120
# Under the 60 seconds for which BentoML holds a request that no one answers.
STOP_LIMIT_S = 30
# Shared, because loading all authorities for each client takes longer than its request.
TLS = ssl.create_default_context()
# Below the ephemeral ports of the kernel, which could take one before its server does.
_PORTS = range(10_000, 32_000)


@dataclass
class Process:
    """A started command; its standard error is kept, line by line, as it comes."""

    popen: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _ended: bool = False

    def follow(self, stream: IO[str]) -> None:
        for line in stream:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for(self, pattern: str, count: int = 1) -> list[str]:
        """Return the lines that hold the pattern, once there are so many; fail if it ends first."""

        def matching_lines() -> list[str]:
            return [line for line in self.lines if re.search(pattern, line)]

        with self._changed:
            self._changed.wait_for(
                lambda: len(matching_lines()) >= count or self._ended, READY_LIMIT_S
            )
            assert len(matching_lines()) >= count, "\n".join(["no " + pattern, *self.lines[-40:]])
            return matching_lines()

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> int:
        """Signal the whole process group, as a terminal does, and return the exit code."""
        if self.popen.poll() is None:
            os.killpg(self.popen.pid, sign)
        return self.popen.wait(STOP_LIMIT_S)

    @property
    def log(self) -> str:
        return "\n".join(self.lines)


@dataclass(frozen=True)
class Server:
    """A ready server."""

    url: str
    process: Process
    env: Mapping[str, str]

    def client(self, token: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, verify=TLS)

    def token(self, subject: str = "tester", *scopes: str) -> str:
        """Mint a token with the secret that is now in the server's environment or files."""
        scopes = scopes or ("predict",)
        return mint(subject, scopes, timedelta(hours=1), AuthSettings(), self._secret())

    def _secret(self) -> str:
        if secret := self.env.get("KAITEN_AUTH__SECRET"):
            return secret
        if folder := self.env.get("KAITEN_SECRETS"):
            return (Path(folder) / "kaiten_auth__secret").read_text("ascii").split()[0]
        return (Path(self.env["KAITEN_HOME"]) / "development.secret").read_text("ascii").strip()


def environment(bentoml_home: Path, home: Path, **extra: str) -> dict[str, str]:
    """Return an environment that shares nothing with the checkout's own state."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("KAITEN_", "BENTOML_"))}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return variables | {
        "BENTOML_HOME": str(bentoml_home),
        "KAITEN_HOME": str(home),
        "PATH": path,
        **extra,
    }


def quickstart_store() -> Path:
    """Return a store with the quickstart model; train it for new data or constants of train.py."""
    data = [path.read_bytes() for path in sorted((QUICKSTART / "data").glob("*.jsonl"))]
    script = (QUICKSTART / "train.py").read_text("utf-8")
    constants = "".join(re.findall(r"^[A-Z0-9_]+ = .*$", script, re.MULTILINE))
    digest = hashlib.sha256(b"".join([*data, constants.encode()])).hexdigest()[:12]
    home = ROOT / ".kaiten" / "tests" / f"bentoml-{digest}"
    home.parent.mkdir(parents=True, exist_ok=True)
    # `make test` runs two processes of tests; the second waits for the first one's model.
    with FileLock(home.parent / "store.lock"):
        if not (home / "models" / "support-intent" / "1.0.0").exists():
            for outdated in home.parent.glob("bentoml-*"):
                shutil.rmtree(outdated)
            home.mkdir()
            command = [sys.executable, str(QUICKSTART / "train.py")]
            subprocess.run(command, env=environment(home, home), check=True, cwd=ROOT)
    return home


def copied_store(store: Path, copy: Path) -> Path:
    """Copy a model store, without what the servers that use it write meanwhile."""
    servers = shutil.ignore_patterns("prometheus_multiproc_dir", "tmp")
    return shutil.copytree(store, copy, symlinks=True, ignore=servers)


def quickstart_texts() -> list[str]:
    """Return two thousand different texts: the quickstart's, and its shortest in pairs."""
    rows = [
        json.loads(line)["text"]
        for name in ("test", "train")
        for line in (QUICKSTART / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    shortest = sorted(rows, key=len)[:50]
    pairs = (f"{first} {second}" for first in shortest for second in shortest)
    return list(dict.fromkeys([*rows, *pairs]))[:2000]


@contextmanager
def running(command: Sequence[str], env: Mapping[str, str], cwd: Path = ROOT) -> Iterator[Process]:
    """Run a command in a process group of its own, and end it whatever happens."""
    popen = subprocess.Popen(
        command,
        env=env,
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    process = Process(popen)
    assert popen.stderr is not None
    reader = threading.Thread(target=process.follow, args=(popen.stderr,), daemon=True)
    reader.start()
    try:
        yield process
    finally:
        process.stop()
        reader.join()
        popen.stderr.close()


@contextmanager
def serving(
    env: Mapping[str, str], *options: str, cwd: Path = ROOT, prefix: Sequence[str] = ()
) -> Iterator[Server]:
    """Run `kaiten serve` until it says that it is ready; ``prefix`` is a command that execs it."""
    port = free_port()
    command = [*prefix, str(BIN / "kaiten"), "serve", "--port", str(port), *options]
    with running(command, env, cwd) as process:
        process.wait_for(r"^Ready\.")
        yield Server(f"http://127.0.0.1:{port}", process, env)


def until_ready(url: str, limit: int = 10_000) -> None:
    """Ask readiness over and over until it is green; connections wait while the server starts."""
    transport = httpx.HTTPTransport(retries=8)
    with httpx.Client(base_url=url, timeout=READY_LIMIT_S, transport=transport) as client:
        assert any(client.get("/readyz").is_success for _ in range(limit))


def worker_series(url: str) -> dict[str, float]:
    """Return the series about the server's workers, by name."""
    page = httpx.get(f"{url}/metrics", verify=TLS, timeout=READY_LIMIT_S).text
    samples = (
        sample for family in text_string_to_metric_families(page) for sample in family.samples
    )
    return {
        sample.name: sample.value for sample in samples if sample.name.startswith("kaiten_worker")
    }


def until_all_ready(url: str, limit: int = 10_000) -> None:
    """Read the metrics over and over until as many workers are ready as are expected."""
    for _ in range(limit):
        series = worker_series(url)
        if series["kaiten_workers_ready"] == series["kaiten_workers_expected"]:
            return
    raise AssertionError("a worker is not ready")


def free_port() -> int:
    """Return a free port, at random, so that two test processes hardly draw the same one."""
    for port in random.SystemRandom().sample(_PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")
