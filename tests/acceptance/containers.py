"""Containers where no engine runs: podman without a daemon, and a base image of Debian's packages.

For these tests only. A real image is made on Python's own base, which no registry gives us here.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.servers import BIN, free_port

BASE = "localhost/kaiten-test-base:bookworm"
PROGRAMS = ("podman", "buildah", "runc", "debootstrap", "nginx")
_REMEDY = (
    "apt-get install --no-install-recommends podman buildah runc debootstrap "
    "containernetworking-plugins netavark aardvark-dns iptables nginx-light"
)
# crun rejects hybrid cgroups, and the default is too high if ulimits cannot be raised.
_CONFIGURATION = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]
[engine]
runtime = "runc"
"""
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_OUTPUT_LINES = 6
_INCLUDED = "ca-certificates,python3,python3-venv"
_HARDENED = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges")
# As a deployment mounts them: state, and what need not outlive the container.
_TMP = "--tmpfs=/tmp:rw,nosuid,nodev,size=64m,mode=1777"


@dataclass
class Log:
    """The commands that were run, how long each took, and what it said last."""

    lines: list[str] = field(default_factory=list)

    def add(self, command: Sequence[str], seconds: float, output: str) -> None:
        """Keep a command and the end of its output."""
        # Podman runs health checks by timers of systemd, which a container engine's host has.
        lines = [
            line for line in output.strip().splitlines() if "get systemd connection" not in line
        ]
        self.lines += [f"$ {' '.join(command)}", *lines[-_OUTPUT_LINES:]]
        self.lines.append(f"# {seconds:.1f} s")


@dataclass(frozen=True)
class Machine:
    """What runs containers here: the environment of its commands, and the log of them."""

    env: Mapping[str, str]
    log: Log

    def run(
        self,
        *command: str,
        stdin: str | None = None,
        may_fail: bool = False,
        in_log: bool = True,
    ) -> str:
        """Run a command and return its output; RuntimeError, with what it said, where it fails.

        ``in_log`` is whether the log has the output, which a token must not enter.
        """
        start = time.monotonic()
        process = subprocess.run(
            command, env=self.env, input=stdin, capture_output=True, text=True, check=False
        )
        output = process.stdout + process.stderr if in_log else ""
        self.log.add(command, time.monotonic() - start, output)
        if process.returncode and not may_fail:
            raise RuntimeError(
                f"{' '.join(command[:4])}: {process.stdout[-2000:]}{process.stderr[-2000:]}"
            )
        return process.stdout.strip() if not process.returncode else process.stderr.strip()

    def inspect(self, kind: str, name: str) -> dict[str, Any]:
        """Return what podman knows of an image or a container."""
        output = self.run("podman", kind, "inspect", name, in_log=False)
        description: dict[str, Any] = json.loads(output)[0]
        return description


def machine(folder: Path, env: Mapping[str, str]) -> Machine:
    """Return a machine, with its configuration in a folder; RuntimeError where a program lacks."""
    path = f"{BIN}{os.pathsep}{env['PATH']}{os.pathsep}/usr/sbin:/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing or os.geteuid() != 0:
        raise RuntimeError(f"as root, with {', '.join(missing) or 'all programs'}: {_REMEDY}")
    configuration = folder / "containers.conf"
    configuration.write_text(_CONFIGURATION, encoding="utf-8")
    return Machine({**env, "PATH": path, "CONTAINERS_CONF": str(configuration)}, Log())


def make_base(machine: Machine, folder: Path) -> None:
    """Make the base image, unless it is there: Debian, Python and uv; 3 minutes."""
    if machine.run("podman", "images", "--quiet", BASE):
        return
    root, archive = folder / "rootfs", folder / "rootfs.tar"
    machine.run("debootstrap", "--variant=minbase", f"--include={_INCLUDED}", "bookworm", str(root))
    shutil.copyfile(_CERTIFICATES, root / _CERTIFICATES.relative_to("/"))
    shutil.copy(BIN / "uv", root / "usr" / "local" / "bin" / "uv")
    for name in ("cache/apt/archives", "lib/apt/lists"):
        shutil.rmtree(root / "var" / name, ignore_errors=True)
    machine.run("tar", "-C", str(root), "-cf", str(archive), ".")
    trusted = f"ENV SSL_CERT_FILE={_CERTIFICATES}"
    machine.run("podman", "import", "--change", trusted, str(archive), BASE)
    shutil.rmtree(root)
    archive.unlink()


@dataclass(frozen=True)
class Container:
    """A running container, and where its port 3000 is on this machine."""

    machine: Machine
    name: str
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def execute(self, *command: str, may_fail: bool = False, in_log: bool = True) -> str:
        """Run a command inside, as its user."""
        return self.machine.run(
            "podman", "exec", self.name, *command, may_fail=may_fail, in_log=in_log
        )

    def stop(self, seconds: int = 60) -> int:
        """Send SIGTERM, wait for the end, and return the exit code."""
        self.machine.run("podman", "stop", "--time", str(seconds), self.name)
        code: int = self.machine.inspect("container", self.name)["State"]["ExitCode"]
        return code

    @property
    def memory_mb(self) -> float:
        """The most memory that it has held since it started, in MB."""
        files = ("memory/memory.max_usage_in_bytes", "memory.peak")
        paths = [f"/sys/fs/cgroup/{name}" for name in files]
        return int(self.execute("sh", "-c", f"cat {' '.join(paths)} 2>/dev/null || true")) / 1e6

    def start_again(self) -> None:
        """Start it once more, as it was."""
        self.machine.run("podman", "start", self.name)


@contextmanager
def running(
    machine: Machine, image: str, name: str, secrets: Path, *options: str
) -> Iterator[Container]:
    """Run an image unprivileged and read-only, and remove all of it in the end."""
    port = free_port()
    state = f"{name}-state"
    mounts = [f"--volume={state}:/var/lib/kaiten", f"--volume={secrets}:/run/secrets:ro", _TMP]
    options = (*_HARDENED, *mounts, f"--publish=127.0.0.1:{port}:3000", *options)
    machine.run("podman", "run", "--detach", "--name", name, *options, image)
    try:
        yield Container(machine, name, port)
    finally:
        machine.log.lines.append(f"# the last lines of {name}:")
        machine.run("podman", "logs", "--tail", "6", name, may_fail=True)
        machine.run("podman", "rm", "--force", "--time", "0", name, may_fail=True)
        with suppress(RuntimeError):
            machine.run("podman", "volume", "rm", state)
