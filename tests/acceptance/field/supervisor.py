"""Attacks of another account on the supervisor, secret rotation, and a failing worker restart."""

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import httpx

from tests.acceptance.places import TWO_WORKERS, WatchedServer, serve
from tests.acceptance.report import Report
from tests.intrusion import (
    attack,
    endpoints_of,
    environments_and_commands,
    may_change_account,
    processes_of,
)
from tests.servers import BIN, ROOT, copied_store, environment, until_all_ready, worker_series

BEFORE: Mapping[str, object] = {
    "endpoints of the supervisor in production": 2,
    "commands it took from another account": ["list", "stats", "options", "add", "quit"],
    "server after quit": "ended, exit code 0",
    "secret told by options": True,
    "processes whose environ shows a secret": "3 of 3",
    "40 requests after rotation and replacement": {"200": 27, "401": 13},
    "killed worker in a container": "not replaced after 60 s, no metric, no line in the log",
}
_SECRET, _ROTATED = "8f14e45fceea167a5a36dedd4bea2543", "c9f0f895fb98ab9159f51fd0297e236d"
_PSEUDONYMS = "45c48cce2e2d7fbdea1afc51c7c6ad26"
_STARTED = "Completed async startup hook"
_REQUESTS, _LIMIT_S = 40, 60
_ROOT_ONLY = "needs root: only root may become another account"


async def run(report: Report, store: Path, folder: Path) -> None:
    """Attack a production and a development server, and kill a worker."""
    keys = folder / "keys"
    keys.mkdir()
    (keys / "kaiten_auth__secret").write_text(_SECRET, encoding="utf-8")
    configuration = folder / "configuration.yaml"
    shutil.copyfile(ROOT / "configuration.yaml", configuration)
    settings = {
        **TWO_WORKERS,
        "BENTOML_CONFIG": str(configuration),
        # As in an image, where BentoML itself does not restart workers.
        "BENTOML_CONTAINERIZED": "true",
        "KAITEN_ENVIRONMENT": "production",
        "KAITEN_SECRETS": str(keys),
        "KAITEN_LOGGING__PSEUDONYM_KEY": _PSEUDONYMS,
    }
    models, home = copied_store(store, folder / "bentoml"), folder / "home"
    _promote(environment(models, home, **settings))
    with serve(models, home, settings) as production:
        _intrude(report, "production", production, _SECRET, _PSEUDONYMS)
        _take_worker(report, production, keys / "kaiten_auth__secret", configuration)
    with serve(models, folder / "other", {"KAITEN_RUNNERS__PROCESS": "device"}) as development:
        development_secret = (folder / "other" / "development.secret").read_text("utf-8")
        _intrude(report, "development, device process", development, development_secret)


def _promote(env: Mapping[str, str]) -> None:
    """Promote the model: production serves only staged versions."""
    options = ("support-intent:1.0.0", "--to", "staging", "--reason", "field suite")
    subprocess.run([str(BIN / "kaiten"), "promote", *options], env=env, check=True)


def _intrude(report: Report, name: str, server: WatchedServer, *secrets: str) -> None:
    """Attack every socket and process of the server as another account."""
    pid = server.server.process.popen.pid
    processes = [process.pid for process in processes_of(pid)]
    environments = environments_and_commands(pid)
    exposed_secrets = [secret for secret in secrets if secret in environments]
    report.check(
        f"{name}: secrets shown by /proc", len(exposed_secrets), passed=not exposed_secrets
    )
    if not may_change_account():
        report.check(f"{name}: another account gets nothing", _ROOT_ONLY, passed=False)
        return
    endpoints = endpoints_of(pid)
    port = server.server.url.replace("http:", "tcp:")
    foreign = [
        endpoint for endpoint in endpoints if endpoint.startswith("tcp:") and endpoint != port
    ]
    report.check(f"{name}: TCP ports beside HTTP", foreign, passed=not foreign)
    findings = attack(endpoints, processes)
    report.tell(name, endpoints=len(endpoints), processes=len(processes))
    report.check(f"{name}: commands taken", findings.commands, passed=not findings.commands)
    report.check(f"{name}: ZeroMQ greets", findings.supervisors, passed=not findings.supervisors)
    report.check(
        f"{name}: /proc and signals of its processes",
        findings.processes,
        passed=not findings.processes,
    )
    leaked = any(secret in findings.answers for secret in secrets)
    report.check(f"{name}: a secret in an answer", leaked, passed=not leaked)
    ready = httpx.get(f"{server.server.url}/readyz").status_code
    report.check(f"{name}: it still serves", ready, passed=ready == httpx.codes.OK)


def _take_worker(report: Report, server: WatchedServer, secret: Path, configuration: Path) -> None:
    """Rotate the secret, and kill a worker whose restart fails until a file is repaired."""
    process, url, token = server.server.process, server.server.url, server.server.token()
    working = configuration.read_text("utf-8")
    secret.write_text(_ROTATED, encoding="utf-8")
    configuration.write_text("services: [", encoding="utf-8")
    os.kill(server.watch.workers()[0].pid, signal.SIGKILL)
    process.wait_for('"worker_ended"', count=2)
    series = worker_series(url)
    count = [series[f"kaiten_workers_{kind}"] for kind in ("expected", "ready")]
    report.check(
        "a worker that cannot start is shown: expected and ready", count, passed=count == [2, 1]
    )
    statuses = _answers(url, token)
    report.check("the other one answers meanwhile", statuses, passed=statuses == {"200": _REQUESTS})
    configuration.write_text(working, encoding="utf-8")
    start = time.monotonic()
    process.wait_for(_STARTED, count=3)
    until_all_ready(url)
    back_s = time.monotonic() - start
    report.check("it is back, seconds after the cause is gone", back_s, passed=back_s < _LIMIT_S)
    statuses = _answers(url, token)
    report.check(
        f"{_REQUESTS} requests after rotation and replacement",
        statuses,
        passed=statuses == {"200": _REQUESTS},
    )


def _answers(url: str, token: str) -> dict[str, int]:
    """Count the statuses of requests on new connections."""
    headers = {"Authorization": f"Bearer {token}", "Connection": "close"}
    body = {"text": "Where is my parcel?"}
    statuses = (
        httpx.post(f"{url}/api/v1/predict", json=body, headers=headers).status_code
        for _ in range(_REQUESTS)
    )
    return {str(status): count for status, count in Counter(statuses).items()}
