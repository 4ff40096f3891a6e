"""Starts a real nginx with the profile that we ship, in a folder of its own."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers import ROOT, Process, free_port, running

PROFILE = ROOT / "deploy" / "nginx" / "kaiten.conf"
# Debian keeps it where only root looks for programs.
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
_MAIN = """
daemon off;
worker_processes 1;
{user}
pid {folder}/nginx.pid;
error_log stderr notice;
events {{
    worker_connections 512;
}}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/kaiten.conf;
}}
"""


@dataclass(frozen=True)
class Proxy:
    """A running nginx: its plain port, its port for TLS, and where its logs are."""

    port: int
    tls_port: int
    folder: Path
    upstream: list[int]
    process: Process

    def turn_to(self, port: int) -> None:
        """Send new requests to another port; current requests end at the old one."""
        profile, before = self.folder / "kaiten.conf", f"server 127.0.0.1:{self.upstream[-1]};"
        text = profile.read_text(encoding="utf-8")
        assert before in text
        profile.write_text(text.replace(before, f"server 127.0.0.1:{port};"), encoding="utf-8")
        self.upstream.append(port)
        self.process.popen.send_signal(signal.SIGHUP)
        self.process.wait_for("start worker process ", len(self.upstream))

    @property
    def access_log(self) -> str:
        """The access log, complete once nginx has ended: it writes a line after its answer."""
        return (self.folder / "access.log").read_text(encoding="utf-8")


@contextmanager
def proxying(
    folder: Path, upstream_port: int, overrides: Mapping[str, str] | None = None
) -> Iterator[Proxy]:
    """Run nginx before a port, and change only places and ``overrides`` in the profile."""
    port, tls_port = free_port(), free_port()
    _make_certificate(folder)
    places = {
        "server 127.0.0.1:3000;": f"server 127.0.0.1:{upstream_port};",
        "listen 443 ": f"listen 127.0.0.1:{tls_port} ",
        "listen [::]:443 ssl http2 default_server;": "",
        "listen 127.0.0.1:8080 ": f"listen 127.0.0.1:{port} ",
        "/etc/nginx/tls": str(folder),
        "/var/log/nginx/kaiten.log": str(folder / "access.log"),
        "/var/log/nginx/kaiten-error.log": str(folder / "error.log"),
    }
    profile = PROFILE.read_text(encoding="utf-8")
    for shipped, replacement in (places | dict(overrides or {})).items():
        assert shipped in profile, shipped
        profile = profile.replace(shipped, replacement)
    (folder / "kaiten.conf").write_text(profile, encoding="utf-8")
    # Without it, workers of root change to an account that may not enter the folder.
    user = "user root root;" if os.geteuid() == 0 else ""
    main = folder / "nginx.conf"
    main.write_text(_MAIN.format(folder=folder, user=user), encoding="utf-8")
    command = [str(NGINX), "-c", str(main), "-p", str(folder)]
    with running(command, dict(os.environ), folder) as process:
        # It listens before it starts its worker.
        process.wait_for("start worker process ")
        yield Proxy(port, tls_port, folder, [upstream_port], process)
        # So that it logs what it still has at hand.
        process.stop(signal.SIGQUIT)


def _make_certificate(folder: Path) -> None:
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(folder / "kaiten.key"), "-out", str(folder / "kaiten.crt")]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
