"""`kaiten init` leaves a folder from which the model serves, and a client that works."""

import subprocess
import sys
from pathlib import Path

from tests.servers import BIN, QUICKSTART, copied_store, environment, serving


def test_model_folder_becomes_a_project_that_serves(bentoml_home: Path, tmp_path: Path) -> None:
    store = copied_store(bentoml_home, tmp_path / "bentoml")
    env = environment(store, tmp_path / "home", KAITEN_RUNNERS__THREADS="1")
    model = store / "models" / "support-intent" / "1.0.0"
    command = [
        *(str(BIN / "kaiten"), "init", "--model", str(model), "--name", "mine"),
        *("--data", str(QUICKSTART / "data" / "test.jsonl")),
    ]
    # Nothing can be asked: standard input is not a terminal.
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=env,
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert "mine:1.0.0 passed" in done.stderr
    project = tmp_path / "mine"
    with serving(env, cwd=project) as server:
        variables = {"URL": server.url, "TOKEN": server.token()}
        answer = subprocess.run(
            [sys.executable, "client.py", "My parcel has not arrived yet, where is it?"],
            cwd=project,
            env=env | variables,
            check=False,
            capture_output=True,
            text=True,
        )
        with server.client(server.token()) as client:
            models = client.get("/api/v2/models").json()["models"]
    assert answer.returncode == 0, answer.stderr
    assert "  order_status  My parcel has not arrived yet" in answer.stdout
    assert [model["model"] for model in models] == ["mine:1.0.0"]
