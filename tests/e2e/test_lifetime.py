"""Starting, stopping and refusing to start, each with a process of its own."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from monitors.drift.spool import Spool, concatenate, read
from tests.servers import (
    BIN,
    ROOT,
    Server,
    environment,
    free_port,
    running,
    serving,
    until_ready,
)

SECRET = "4f1c0de5a9b87632d0e1f2a3b4c5d6e74f1c0de5a9b87632d0e1f2a3b4c5d6e7"


def test_ctrl_c_stops_cleanly_and_what_was_seen_waits_for_its_window(
    bentoml_home: Path, tmp_path: Path
) -> None:
    texts = ("a parcel", "my password", "where is it")
    with serving(environment(bentoml_home, tmp_path)) as server:
        with server.client(server.token()) as client:
            for text in texts:
                client.post("/api/v1/predict", json={"text": text}).raise_for_status()
        code = server.process.stop(signal.SIGINT)
        log = server.process.log
    spool = Spool(tmp_path / "drift" / "spool")
    (source,) = spool.sources("support-intent:1.0.0")
    features = concatenate(read(spool.parts(source)))

    assert code == 0
    assert "Traceback" not in log
    assert features["text_length"].tolist() == [*map(len, texts)]


def test_plain_bentoml_serve_works_in_the_checkout(bentoml_home: Path, tmp_path: Path) -> None:
    env, port = environment(bentoml_home, tmp_path), free_port()
    with running([str(BIN / "bentoml"), "serve", "--port", str(port)], env) as process:
        in_force = process.wait_for("configuration_in_force")[0]
        url = f"http://127.0.0.1:{port}"
        until_ready(url)
        server = Server(url, process, env)
        with server.client(server.token()) as client:
            answer = client.post("/api/v1/predict", json={"text": "I forgot my password"})
            metrics = client.get("/metrics").text

    assert answer.json()["label"] == "login_problem"
    route = r"^model_requests_total\{.*route=\"/api/v1/predict\""
    assert re.search(route, metrics, re.MULTILINE)
    assert "kaiten.yaml" in in_force
    assert "the values in server/bentoml_config.py" in in_force


def refusal(env: dict[str, str], cwd: Path = ROOT) -> str:
    command = [str(BIN / "bentoml"), "serve", str(ROOT), "--port", str(free_port())]
    done = subprocess.run(
        command, env=env, cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_without_a_model_it_stops_with_the_remedy(tmp_path: Path) -> None:
    output = refusal(environment(tmp_path / "empty", tmp_path))

    assert "support-intent:1.0.0" in output
    assert "make quickstart" in output


def test_absent_device_stops_the_start_with_the_remedy(bentoml_home: Path, tmp_path: Path) -> None:
    # None is visible on any machine.
    settings = {"KAITEN_RUNNERS__DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": ""}
    output = refusal(environment(bentoml_home, tmp_path, **settings))

    assert "runners.device: is cuda, but torch sees no CUDA device; use cpu" in output
    # The parent says it once, before any worker tries.
    assert output.count("runners.device") == 1


def test_production_without_a_secret_does_not_start(bentoml_home: Path, tmp_path: Path) -> None:
    output = refusal(environment(bentoml_home, tmp_path, KAITEN_ENVIRONMENT="production"))

    assert "auth.secret" in output
    assert "KAITEN_AUTH__SECRET" in output


def test_placeholder_secret_does_not_start_and_is_not_shown(
    bentoml_home: Path, tmp_path: Path
) -> None:
    placeholder = "change-me-change-me-change-me-change-me"
    output = refusal(environment(bentoml_home, tmp_path, KAITEN_AUTH__SECRET=placeholder))

    assert "auth.secret" in output
    assert placeholder not in output


def test_port_in_use_is_reported_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        command = [str(BIN / "kaiten"), "serve", "--port", port]
        env = environment(tmp_path, tmp_path)
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert f"Port {port} cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


def test_misspelled_setting_does_not_start(bentoml_home: Path, tmp_path: Path) -> None:
    output = refusal(environment(bentoml_home, tmp_path, KAITEN_SERVNG__MODELS="a:1.0.0"))

    assert "KAITEN_SERVNG__MODELS" in output
    assert "KAITEN_SERVING" in output


@pytest.fixture
def routeless() -> list[str]:
    """A prefix that runs a command in a network namespace that has loopback and no route."""
    prefix = ["unshare", "--net", "--map-root-user"]
    script = 'ip link set lo up && exec "$@"'
    command = [*prefix, "sh", "-c", script, "sh"]
    has_tools = shutil.which("unshare") and shutil.which("ip")
    if (
        not has_tools
        or subprocess.run([*command, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("needs unshare and ip, and the right to make a network namespace")
    return command


ASK = """
import http.client, json, pathlib, sys, urllib.request

def refused():
    rows = [l.split() for l in pathlib.Path("/proc/net/snmp").read_text().splitlines()]
    names, values = [row for row in rows if row[0] == "Ip:"]
    return int(dict(zip(names, values))["OutNoRoutes"])

url, token = sys.argv[1:]
before = refused()
body = json.dumps({"text": "I forgot my password"}).encode()
headers = {"Authorization": "Bearer " + token, "Content-Type": "application/json"}
answer = urllib.request.urlopen(urllib.request.Request(url, body, headers)).read().decode()
try:
    http.client.HTTPConnection("192.0.2.1", 80, timeout=5).connect()
except OSError:
    pass
print(json.dumps({"answer": json.loads(answer), "refused": before, "control": refused()}))
"""


def test_server_opens_no_outside_connection(
    bentoml_home: Path, tmp_path: Path, routeless: list[str]
) -> None:
    """It answers without a route, and the kernel counts no packet that wanted one."""
    env, port = environment(bentoml_home, tmp_path), free_port()
    # The namespace is the server's, so the asking is done from inside it too.
    command = [*routeless, str(BIN / "kaiten"), "serve", "--port", str(port)]
    with running(command, env) as process:
        process.wait_for(r"^Ready\.")
        token = Server("", process, env).token()
        url = f"http://127.0.0.1:{port}/api/v1/predict"
        enter = ["nsenter", f"--net=/proc/{process.popen.pid}/ns/net"]
        done = subprocess.run(
            [*enter, sys.executable, "-c", ASK, url, token],
            env=env,
            check=True,
            capture_output=True,
            text=True,
        )
    result = json.loads(done.stdout)
    assert result["answer"]["label"] == "login_problem"
    assert result["refused"] == 0
    # The count does see an attempt: the one that was made on purpose.
    assert result["control"] > 0
