"""Starts real Redis servers, to be shared, stopped in their tracks and killed."""

import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.servers import free_port

KEEPS_NOTHING = ("--save", "", "--appendonly", "no")


@dataclass(frozen=True)
class RedisServer:
    """A server that answers, on this machine only."""

    url: str
    port: int
    popen: subprocess.Popen[str]

    def hang(self) -> None:
        """Answer no more, and keep every connection."""
        self.popen.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.popen.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()


@contextmanager
def redis_server(
    port: int | None = None, password: str = "", options: Sequence[str] = KEEPS_NOTHING
) -> Iterator[RedisServer]:
    """Run a server with options, on a port of its own or on this one."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not on this machine: apt-get install redis-server")
    port = port or free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", *options]
    options += ["--requirepass", password] if password else []
    with subprocess.Popen([binary, *options], stdout=subprocess.PIPE, text=True) as popen:
        try:
            assert popen.stdout is not None
            assert any("Ready to accept" in line for line in popen.stdout)
            user = f":{password}@" if password else ""
            yield RedisServer(f"redis://{user}127.0.0.1:{port}/0", port, popen)
        finally:
            popen.kill()
