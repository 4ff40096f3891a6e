"""The files that `kaiten init` writes work with the rest: settings, commands, Compose, the API."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.protocols.kaiten_v2 import PredictV2Request
from kaiten.settings.environment import ROOT
from kaiten.settings.loader import load_settings
from server.project_files import ProjectFacts, render_files
from tests.checks.test_docs import commands, resolve

FILES = render_files(ProjectFacts("my.model:1.2.3", Path("/data/my rows.jsonl"), 0.95123, 0.9))


def test_settings_are_accepted_and_name_the_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = load_settings().validation
    (tmp_path / "kaiten.yaml").write_text(FILES["kaiten.yaml"])
    monkeypatch.setenv("KAITEN_CONFIG", str(tmp_path / "kaiten.yaml"))
    settings = load_settings()
    assert settings.serving.models == ("my.model:1.2.3",)
    assert settings.validation == defaults
    assert "measured 0.951." in FILES["kaiten.yaml"]


def test_service_is_confined_as_that_of_deploy() -> None:
    document = (ROOT / "deploy" / "compose" / "compose.yaml").read_text("utf-8")
    deployed: dict[str, Any] = yaml.safe_load(document)["services"]["kaiten"]
    service: dict[str, Any] = yaml.safe_load(FILES["compose.yaml"])["services"]["kaiten"]
    project_keys = {"environment", "image", "secrets", "volumes"}
    # It has no Redis, and no proxy or network of its own.
    left_out = {"depends_on", "env_file", "networks"}
    assert service.keys() == deployed.keys() - left_out
    assert {key: service[key] for key in service.keys() - project_keys} == {
        key: deployed[key] for key in service.keys() - project_keys
    }
    assert service["image"].startswith("${KAITEN_IMAGE:?")


def test_compose_file_has_a_name_that_compose_accepts_and_mounts_the_settings() -> None:
    compose = yaml.safe_load(FILES["compose.yaml"])
    service = compose["services"]["kaiten"]
    assert compose["name"] == "my-model"
    assert f"./kaiten.yaml:{service['environment']['KAITEN_CONFIG']}:ro" in service["volumes"]
    assert compose["secrets"] == {
        "kaiten_auth__secret": {"file": "./secrets/kaiten_auth__secret"},
    }
    assert {"secrets/", ".kaiten/"} <= {*FILES[".gitignore"].splitlines()}


def test_readme_shows_commands_that_exist() -> None:
    calls = commands(FILES["README.md"])
    assert {call[0] for call in calls} >= {"serve", "token", "promote", "build", "validate"}
    for call in calls:
        resolution = resolve(call)
        assert resolution is not None, call
        command, rest = resolution
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options, call
    assert "--data '/data/my rows.jsonl'\n" in FILES["README.md"]
    # A variable before one command is not set for the next.
    compose = [line for line in FILES["README.md"].splitlines() if "docker compose" in line]
    assert len(compose) == 2
    assert all(line.startswith("docker compose ") for line in compose)
    assert "echo KAITEN_IMAGE=my-model:1.2.3 > .env\n" in FILES["README.md"]


class _Server(BaseHTTPRequestHandler):
    """Answers each text with one label, and refuses another token."""

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        body = PredictV2Request.model_validate_json(content)
        valid = self.path == "/api/v2/predict" and self.headers["Authorization"] == "Bearer good"
        predictions = [{"score": 0.5, "label": "billing"} for _ in body.inputs]
        answer = json.dumps({"predictions": predictions} if valid else {"error": "no"}).encode()
        self.send_response(200 if valid else 401)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Write no log."""


@pytest.mark.parametrize(
    ("token", "code", "output", "error"),
    [
        ("good", 0, "0.50  billing  a text\n0.50  billing  another\n", ""),
        ("bad", 1, "", '{"error": "no"}\n'),
    ],
)
def test_client_asks_the_server(
    token: str, code: int, output: str, error: str, tmp_path: Path
) -> None:
    (tmp_path / "client.py").write_text(FILES["client.py"])
    with HTTPServer(("127.0.0.1", 0), _Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        # A proxy that is nowhere: it is not asked.
        env = os.environ | {
            "URL": f"http://127.0.0.1:{server.server_port}",
            "TOKEN": token,
            "http_proxy": "http://127.0.0.1:9",
        }
        command = [sys.executable, "client.py", "a text", "another"]
        try:
            done = subprocess.run(
                command, cwd=tmp_path, env=env, check=False, capture_output=True, text=True
            )
        finally:
            server.shutdown()
            thread.join()
    assert (done.returncode, done.stdout, done.stderr) == (code, output, error)
