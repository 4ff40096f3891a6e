"""BentoML's own settings: what a running server makes of each, and what stops a start."""

import json
import socket
import subprocess
from pathlib import Path
from secrets import token_hex

import httpx
import psutil
import pytest
import yaml

from tests.servers import BIN, ROOT, TLS, Server, environment, free_port, running, until_ready

# The other addresses of the loopback are there as well.
HOST = "127.0.0.2"


def test_running_server_is_what_its_configuration_says(bentoml_home: Path, tmp_path: Path) -> None:
    """Every value is another than service.py says, so that none can be in force by chance.

    That the timeout is, tests/checks/test_configuration.py sees: no request outlives our own.
    """
    port = free_port()
    service = {
        "workers": 2,
        "traffic": {"timeout": 45},
        "metrics": {"enabled": True},
        "logging": {"access": {"enabled": True}},
        "http": {"host": HOST, "port": port},
    }
    file = tmp_path / "bentoml.yaml"
    file.write_text(yaml.safe_dump({"services": {"kaiten_service": service}}))
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "kaiten_auth__secret").write_text(f"{token_hex(32)}\n")
    home = tmp_path / "home"
    env = environment(bentoml_home, home, BENTOML_CONFIG=str(file), KAITEN_SECRETS=str(secrets))
    # The settings of the folder that is served precede those of the working directory.
    project = tmp_path / "project"
    project.mkdir()
    (project / "kaiten.yaml").write_text("serving: {models: [absent:1.0.0]}\n")
    with running([str(BIN / "bentoml"), "serve", str(ROOT)], env, cwd=project) as process:
        in_force = process.wait_for("configuration_in_force")[0]
        process.wait_for("Completed async startup hook", count=2)
        until_ready(f"http://{HOST}:{port}")
        with httpx.Client(base_url=f"http://{HOST}:{port}", timeout=60, verify=TLS) as client:
            client.get("/invented/path")
            metrics = client.get("/metrics").text
        server = Server(f"http://{HOST}:{port}", process, env)
        create = [str(BIN / "kaiten"), "token", "create", "--subject", "a", "--scope", "predict"]
        result = subprocess.run(create, env=env, check=True, capture_output=True, text=True)
        with server.client(result.stdout.strip()) as client:
            answer = client.post("/api/v1/predict", json={"text": "I forgot my password"})
        children = psutil.Process(process.popen.pid).children(recursive=True)
        commands = [" ".join(child.cmdline()) for child in children]
        with socket.socket() as client_socket:
            connect_error = client_socket.connect_ex(("127.0.0.1", port))

    assert str(file) in in_force
    assert json.loads(in_force)["settings"] == str(ROOT / "kaiten.yaml")
    assert len([command for command in commands if "_bentoml_impl.worker.service" in command]) == 2
    assert connect_error
    # The secret is that of the file, for the workers and for the command alike.
    assert answer.status_code == 200
    assert not (home / "development.secret").exists()
    # BentoML's own metrics, which label by raw path, and its own access log.
    assert 'endpoint="/invented/path"' in metrics
    assert "path=/invented/path" in process.log


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "services: {kaiten_service: {worker: 2}}",
            "services.kaiten_service.worker: is not a key of BentoML's; did you mean workers?",
        ),
        (
            "services: {kaiten-service: {workers: 2}}",
            "services.kaiten-service: names no service here; did you mean kaiten_service?",
        ),
    ],
)
def test_misspelled_key_stops_the_start_by_its_name(
    text: str, message: str, bentoml_home: Path, tmp_path: Path
) -> None:
    file = tmp_path / "bentoml.yaml"
    file.write_text(text)
    command = [str(BIN / "bentoml"), "serve", str(ROOT), "--port", str(free_port())]
    env = environment(bentoml_home, tmp_path, BENTOML_CONFIG=str(file))
    done = subprocess.run(
        command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert message in done.stdout + done.stderr
