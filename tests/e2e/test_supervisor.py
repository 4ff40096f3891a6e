"""The supervisor takes no orders, its workers show no secret, and they come back."""

import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.watch import Watch
from tests.intrusion import (
    attack,
    endpoints_of,
    environments_and_commands,
    may_change_account,
    processes_of,
)
from tests.servers import (
    BIN,
    ROOT,
    TLS,
    Server,
    copied_store,
    environment,
    free_port,
    running,
    serving,
    until_all_ready,
    worker_series,
)

pytestmark = [
    pytest.mark.skipif(not may_change_account(), reason="only root may become another account"),
]
SECRET, ROTATED = "8f14e45fceea167a5a36dedd4bea2543", "c9f0f895fb98ab9159f51fd0297e236d"
PSEUDONYMS = "45c48cce2e2d7fbdea1afc51c7c6ad26"
STARTED = "Completed async startup hook"


@pytest.fixture(scope="module")
def production(bentoml_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers as in an image: production, a secret in a file, others in the environment."""
    folder = tmp_path_factory.mktemp("production")
    (folder / "keys").mkdir()
    (folder / "keys" / "kaiten_auth__secret").write_text(SECRET)
    shutil.copyfile(ROOT / "configuration.yaml", folder / "configuration.yaml")
    env = environment(
        copied_store(bentoml_home, folder / "bentoml"),
        folder / "home",
        BENTOML_CONFIG=str(folder / "configuration.yaml"),
        BENTOML_CONFIG_OPTIONS="services.kaiten_service.workers=2",
        # As in an image, where BentoML by itself replaces no worker.
        BENTOML_CONTAINERIZED="true",
        KAITEN_ENVIRONMENT="production",
        KAITEN_SECRETS=str(folder / "keys"),
        KAITEN_LOGGING__PSEUDONYM_KEY=PSEUDONYMS,
    )
    promote = ["promote", "support-intent:1.0.0", "--to", "staging", "--reason", "test"]
    subprocess.run([str(BIN / "kaiten"), *promote], env=env, check=True)
    with serving(env) as server:
        server.process.wait_for(STARTED, count=2)
        until_all_ready(server.url)
        yield server


@pytest.fixture(scope="module")
def development(bentoml_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`bentoml serve` in development, with a device process and the plugin that reloads."""
    folder = tmp_path_factory.mktemp("development")
    env = environment(bentoml_home, folder, KAITEN_RUNNERS__PROCESS="device")
    url = f"http://127.0.0.1:{(port := free_port())}"
    options = ["--host", "127.0.0.1", "--port", str(port), "--development", "--reload"]
    with running([str(BIN / "bentoml"), "serve", str(ROOT), *options], env) as process:
        process.wait_for(STARTED)
        until_all_ready(url)
        yield Server(url, process, env)


def test_another_account_gets_nothing_in_production(production: Server) -> None:
    pid = production.process.popen.pid
    endpoints = endpoints_of(pid)
    findings = attack(endpoints, [process.pid for process in processes_of(pid)])
    assert endpoints == [production.url.replace("http:", "tcp:")]
    assert findings.is_empty, findings
    assert httpx.get(f"{production.url}/readyz", verify=TLS).status_code == 200


def test_another_account_gets_nothing_in_development(development: Server) -> None:
    pid = development.process.popen.pid
    endpoints = endpoints_of(pid)
    findings = attack(endpoints, [process.pid for process in processes_of(pid)])
    assert findings.is_empty, findings
    tcp = [endpoint for endpoint in endpoints if endpoint.startswith("tcp:")]
    sockets = {
        Path(endpoint.removeprefix("ipc://")) for endpoint in endpoints if endpoint not in tcp
    }
    assert tcp == [development.url.replace("http:", "tcp:")]
    assert {socket.name for socket in sockets} >= {"controller", "events", "cpu.sock"}
    assert {socket.parent.stat().st_mode & 0o777 for socket in sockets} == {0o700}
    assert httpx.get(f"{development.url}/readyz", verify=TLS).status_code == 200


def test_no_process_shows_a_secret_in_its_environment_or_command_line(
    production: Server, development: Server
) -> None:
    process_text = environments_and_commands(production.process.popen.pid)
    assert "BENTOML_HOME" in process_text
    assert not [secret for secret in (SECRET, PSEUDONYMS) if secret in process_text]
    development_secret = (Path(development.env["KAITEN_HOME"]) / "development.secret").read_text()
    assert development_secret not in environments_and_commands(development.process.popen.pid)


def prediction_status(url: str, token: str) -> int:
    """Return the status of a prediction over a connection of its own."""
    headers = {"Authorization": f"Bearer {token}", "Connection": "close"}
    body = {"text": "Where is it?"}
    return httpx.post(f"{url}/api/v1/predict", json=body, headers=headers, verify=TLS).status_code


def test_worker_that_cannot_come_back_is_shown_and_comes_back_with_the_rotated_secrets(
    production: Server,
) -> None:
    process, url, token = production.process, production.url, production.token()
    configuration = Path(production.env["BENTOML_CONFIG"])
    working = configuration.read_text()
    assert worker_series(url) == {
        "kaiten_workers_expected": 2,
        "kaiten_workers_ready": 2,
        "kaiten_worker_starts_total": 2,
    }
    secrets = Path(production.env["KAITEN_SECRETS"]) / "kaiten_auth__secret"
    secrets.write_text(f"{ROTATED}\n{SECRET}\n")
    configuration.write_text("services: [")
    victim = Watch(process.popen.pid).workers()[0]
    os.kill(victim.pid, signal.SIGKILL)
    # The one that was killed, and the one that was started in its place.
    process.wait_for('"worker_ended"', count=2)
    series = worker_series(url)
    assert (series["kaiten_workers_expected"], series["kaiten_workers_ready"]) == (2, 1)
    configuration.write_text(working)
    process.wait_for(STARTED, count=3)
    until_all_ready(url)

    for bearer in (token, production.token()):
        statuses = Counter(prediction_status(url, bearer) for _ in range(40))
        assert statuses == {200: 40}
    assert worker_series(url)["kaiten_worker_starts_total"] == 3
