"""Starts real PostgreSQL servers, to be stopped, killed and started again."""

import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

import psutil
import pytest

from tests.servers import free_port

USER = "kaiten"


@dataclass
class PostgresServer:
    """A server that answers, on this machine only."""

    folder: Path
    port: int = field(default_factory=free_port)
    password: str = field(default_factory=lambda: f"canary-{secrets.token_hex(8)}")
    popen: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://{USER}:{self.password}@127.0.0.1:{self.port}/postgres"

    def initialise(self) -> None:
        """Make its data, owned by another account than root, as which it refuses to run."""
        if os.geteuid() == 0:
            shutil.chown(self.folder, _NOBODY)
        password = self.folder / "password"
        password.write_text(self.password)
        password.chmod(0o644)
        options = ["-U", USER, "-A", "scram-sha-256", "--pwfile", str(password), "--no-sync"]
        command = [*_as_nobody(), _binary("initdb"), "-D", str(self.data), *options]
        subprocess.run(command, check=True, capture_output=True, cwd="/")

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        options = ["-p", str(self.port), "-c", "listen_addresses=127.0.0.1"]
        options += ["-c", "unix_socket_directories=", "-c", "logging_collector=off"]
        command = [*_as_nobody(), _binary("postgres"), "-D", str(self.data), *options]
        self.popen = subprocess.Popen(command, stderr=subprocess.PIPE, cwd="/")
        assert self.popen.stderr is not None
        assert any(b"ready to accept" in line for line in self.popen.stderr)
        # Nothing reads its output from here on, so it must not fill the pipe.
        self.popen.stderr.close()

    def stop(self) -> None:
        """Stop it in good order, disconnecting all clients."""
        assert self.popen is not None
        self.popen.send_signal(signal.SIGINT)
        self.popen.wait(30)

    def hang(self) -> None:
        """Answer no more, and keep every connection."""
        for process in self._processes():
            process.suspend()

    def go_on(self) -> None:
        for process in self._processes():
            process.resume()

    def _processes(self) -> list[psutil.Process]:
        assert self.popen is not None
        server = psutil.Process(self.popen.pid)
        return [server, *server.children(recursive=True)]

    def restart(self) -> None:
        self.stop()
        self.start()


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Run a server of its own, empty, until the end."""
    server = PostgresServer(Path(mkdtemp(prefix="kaiten-postgres-")))
    try:
        server.initialise()
        server.start()
        yield server
    finally:
        if server.popen is not None:
            server.stop()
        shutil.rmtree(server.folder)


def _binary(name: str) -> str:
    """Return the path of one of its commands, of the newest version; Debian has them aside."""
    packaged = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    path = shutil.which(name) or (str(packaged[-1]) if packaged else None)
    if path is None:
        pytest.skip("PostgreSQL is not on this machine: apt-get install postgresql")
    return path


_NOBODY = "nobody"


def _as_nobody() -> list[str]:
    return ["setpriv", f"--reuid={_NOBODY}", "--clear-groups"] if os.geteuid() == 0 else []
