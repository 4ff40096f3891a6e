"""A host with two instances of Kaiten behind nginx, which kaiten-host.sh switches between.

nginx, both servers and the script are real. A program in place of systemd starts the ExecStart of
the unit with its environment files, and ends it by SIGTERM to its main process.
"""

import json
import os
import secrets
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import cycle
from pathlib import Path

import httpx
import psutil

from gateway.auth.minting import mint
from kaiten.settings.models import AuthSettings
from kaiten_client import Client, KaitenError
from tests.e2e.nginx import NGINX, Proxy, proxying
from tests.servers import BIN, ROOT, TLS, free_port, quickstart_texts

SYSTEMD = ROOT / "deploy" / "systemd"
INSTANCES = ("blue", "green")
_LANES = 12
_LIMIT_S = 300
_SYSTEMCTL = """#!/bin/bash
# systemctl VERB [--quiet] kaiten@INSTANCE
verb=$1 unit=${!#}
instance=${unit##*@}
file=$HOST_RUN/$instance

# Values are literal, except for a pair of quotes around one.
read_environment() {
    while IFS= read -r line; do
        [[ $line == [A-Za-z_]*=* ]] || continue
        value=${line#*=}
        case $value in \\"*\\" | \\'*\\') value=${value:1:-1} ;; esac
        export "${line%%=*}=$value"
    done < "$1"
}

start() {
    rm -f "$file".*
    (
        read_environment "$HOST_ETC/kaiten.env"
        read_environment "$HOST_ETC/$instance.env"
        cd "$KAITEN_HOME"
        command=$(sed -n 's/^ExecStart=//p' "$HOST_UNIT")
        command=${command//%i/$instance}
        bash -c "exec setsid ${command//\\/opt\\/kaiten/$HOST_OPT}" </dev/null 9<&- &
        echo $! > "$file.pid"
        wait $!
        echo $? > "$file.code"
    ) >"$file.log" 2>&1 9<&- &
    until [[ -s $file.pid ]]; do sleep 0.02; done
}

stop() {
    [[ -s $file.pid ]] || return 0
    [[ -s $file.code ]] || kill -TERM "$(cat "$file.pid")"
    until [[ -s $file.code ]]; do sleep 0.05; done
}

case "$verb" in
is-active) [[ -s $file.pid && ! -s $file.code ]] ;;
start) start ;;
stop) stop ;;
esac
"""
_RUNUSER = '#!/bin/bash\nshift 3\nexec "$@"\n'
# A shell would read these values differently from systemd.
_PLANS = """
KAITEN_RATE_LIMIT__TOKENS=1000000000 per 1 minute
KAITEN_RATE_LIMIT__PLANS={"nightly": {"requests": "5000 per 2 hours"}}
"""
# The access log says which instance answered.
_LOGGED = '"upstream_status": "$upstream_status"'
OVERRIDES = {_LOGGED: f'{_LOGGED}, "upstream": "$upstream_addr"'}


@dataclass(frozen=True)
class Host:
    """The host: nginx, the files of its instances, and the secret that signs tokens."""

    folder: Path
    proxy: Proxy
    ports: Mapping[str, int]
    env: Mapping[str, str]
    secret: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.proxy.port}"

    def token(self, *scopes: str) -> str:
        return mint("tester", scopes, timedelta(hours=1), AuthSettings(), self.secret)

    def run(self, *arguments: str) -> str:
        """Run kaiten-host.sh; return its messages, AssertionError if it fails."""
        command = [str(SYSTEMD / "kaiten-host.sh"), *arguments]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stderr}\n{self._logs()}"
        return done.stdout + done.stderr

    def exit_code(self, instance: str) -> int | None:
        """Return the exit code of an instance's last process, None while it runs."""
        file = self.folder / "run" / f"{instance}.code"
        return int(file.read_text("ascii")) if file.exists() else None

    def answers(self) -> Counter[tuple[str, int]]:
        """Count the requests in nginx's log by instance and status; complete once nginx has ended.

        A request that no instance answered counts for the instance "none".
        """
        names = {f"127.0.0.1:{port}": name for name, port in self.ports.items()}
        lines = map(json.loads, self.proxy.access_log.splitlines())
        return Counter((names.get(line["upstream"], "none"), line["status"]) for line in lines)

    def _logs(self) -> str:
        logs = sorted((self.folder / "run").glob("*.log"))
        return "\n".join(f"{log.name}:\n{log.read_text('utf-8')[-3000:]}" for log in logs)


@contextmanager
def hosting(folder: Path, env: Mapping[str, str], bentos: Mapping[str, str]) -> Iterator[Host]:
    """Set up a host with a bento for each instance; nginx reaches neither yet.

    ``env`` holds BENTOML_HOME with the bentos and their models.
    """
    ports = {name: free_port() for name in INSTANCES}
    secret = secrets.token_hex(32)
    _write_files(folder, env, ports, bentos, secret)
    _write_programs(folder)
    with proxying(folder, free_port(), OVERRIDES) as proxy:
        places = {
            "PATH": f"{folder / 'bin'}{os.pathsep}{env['PATH']}",
            "HOST_ETC": str(folder / "etc"),
            "HOST_LOCK": str(folder / "kaiten-host.lock"),
            "HOST_OPT": str(folder / "opt"),
            "HOST_RUN": str(folder / "run"),
            "HOST_UNIT": str(SYSTEMD / "kaiten@.service"),
            "NGINX_PROFILE": str(folder / "kaiten.conf"),
            "NGINX_PID": str(folder / "nginx.pid"),
        }
        variables = {name: value for name, value in env.items() if not name.startswith("KAITEN_")}
        try:
            yield Host(folder, proxy, ports, variables | places, secret)
        finally:
            _end(folder / "run")


def _write_files(
    folder: Path,
    env: Mapping[str, str],
    ports: Mapping[str, int],
    bentos: Mapping[str, str],
    secret: str,
) -> None:
    for name in ("etc", "home", "opt", "run", "secrets"):
        (folder / name).mkdir()
    (folder / "secrets" / "kaiten_auth__secret").write_text(secret, "ascii")
    shipped = (SYSTEMD / "kaiten.env").read_text("utf-8")
    changes = {
        "BENTOML_HOME=/var/lib/kaiten/bentoml": f"BENTOML_HOME={env['BENTOML_HOME']}",
        "KAITEN_HOME=/var/lib/kaiten": f"KAITEN_HOME={folder / 'home'}",
        "KAITEN_SECRETS=/etc/kaiten/secrets": f"KAITEN_SECRETS={folder / 'secrets'}",
    }
    (folder / "etc" / "kaiten.env").write_text(_replaced(shipped, changes) + _PLANS, "utf-8")
    for number, name in enumerate(INSTANCES, 3001):
        shipped = (SYSTEMD / f"{name}.env").read_text("utf-8")
        changes = {
            f"PORT={number}": f'PORT="{ports[name]}"',
            "BENTO=kaiten_service:VERSION": f"BENTO={bentos[name]}",
        }
        (folder / "etc" / f"{name}.env").write_text(_replaced(shipped, changes), "utf-8")
        # Both run in the environment of the tests.
        (folder / "opt" / name).symlink_to(BIN.parent)


def _replaced(text: str, changes: Mapping[str, str]) -> str:
    for before, after in changes.items():
        assert before in text, before
        text = text.replace(before, after)
    return text


def _write_programs(folder: Path) -> None:
    nginx = f'#!/bin/bash\nexec {NGINX} -c {folder}/nginx.conf -p {folder} "$@"\n'
    programs = {"systemctl": _SYSTEMCTL, "runuser": _RUNUSER, "nginx": nginx}
    (folder / "bin").mkdir()
    for name, text in programs.items():
        program = folder / "bin" / name
        program.write_text(text, "utf-8")
        program.chmod(0o755)


def _end(folder: Path) -> None:
    """Kill the servers that still run, and wait until they write no more files."""
    for file in folder.glob("*.pid"):
        if not file.with_suffix(".code").exists():
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                server = psutil.Process(int(file.read_text("ascii")))
                processes = [server, *server.children(recursive=True)]
                for process in processes:
                    # BentoML's workers are groups of their own.
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                psutil.wait_procs(processes, timeout=30)


@dataclass
class Traffic:
    """Lanes that send predictions over and over, and the failures that they meet.

    Half of them open a connection for each request. The others keep theirs, with Kaiten's client:
    nginx closes idle connections when it reads its configuration, and the client repeats a request
    that met this.
    """

    url: str
    token: str
    requests: int = 0
    failures: list[str] = field(default_factory=list)
    _over: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """Send requests in the ``with`` block, and await the last answers."""
        lanes = [threading.Thread(target=self._lane, args=(n,), daemon=True) for n in range(_LANES)]
        for lane in lanes:
            lane.start()
        try:
            yield
        finally:
            self._over = True
            for lane in lanes:
                lane.join(_LIMIT_S)

    def wait_for(self, requests: int) -> None:
        """Wait until so many more requests have ended."""
        with self._changed:
            goal = self.requests + requests
            assert self._changed.wait_for(lambda: self.requests >= goal, _LIMIT_S), self.requests

    def _lane(self, number: int) -> None:
        texts = cycle(quickstart_texts()[number::_LANES])
        send = self._send_kept if number % 2 else self._send_once
        with Client(self.url, token=self.token) as client:
            while not self._over:
                failure = send(client, next(texts))
                with self._changed:
                    self.requests += 1
                    self.failures += [failure] if failure else []
                    self._changed.notify_all()

    def _send_once(self, _: Client, text: str) -> str:
        headers = {"Authorization": f"Bearer {self.token}", "Connection": "close"}
        try:
            response = httpx.post(
                f"{self.url}/api/v1/predict",
                json={"text": text},
                headers=headers,
                timeout=60,
                verify=TLS,
            )
        except httpx.HTTPError as error:
            return repr(error)
        return "" if response.is_success else f"{response.status_code} {response.text[:200]}"

    def _send_kept(self, client: Client, text: str) -> str:
        try:
            client.predict([text])
        except KaitenError as error:
            return repr(error)
        return ""
