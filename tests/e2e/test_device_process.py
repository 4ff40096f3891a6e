"""A server whose models are in a device process: what callers, operators and the metrics see."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.servers import (
    BIN,
    STOP_LIMIT_S,
    Server,
    environment,
    free_port,
    running,
    serving,
    until_ready,
)

TEXT = {"text": "Where is my parcel?"}


@pytest.fixture(scope="module")
def apart(bentoml_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("apart")
    workers = "services.kaiten_service.workers=2"
    asked = {"BENTOML_CONFIG_OPTIONS": workers, "KAITEN_RUNNERS__PROCESS": "device"}
    with serving(environment(bentoml_home, home, **asked)) as server:
        server.process.wait_for("device_process_found", count=2)
        yield server


def family(server: Server) -> list[psutil.Process]:
    """Return the server's processes, that which holds the models last."""
    parent = psutil.Process(server.process.popen.pid)
    found = [parent, *parent.children(recursive=True)]
    return sorted(found, key=lambda each: "cli device" in " ".join(each.cmdline()))


def maps_a_network(process: psutil.Process) -> bool:
    return any("onnxruntime" in mapped.path for mapped in process.memory_maps())


def test_answers_are_those_of_a_worker_that_holds_the_model(
    apart: Server, server: Server, texts: list[str]
) -> None:
    found = []
    for each in (apart, server):
        with each.client(each.token()) as client:
            answer = client.post("/api/v2/predict", json={"inputs": texts[:200], "top_k": 3})
            found.append(answer.raise_for_status().json()["predictions"])
    for mine, other in zip(*found, strict=True):
        assert mine["label"] == other["label"]
        assert mine["score"] == pytest.approx(other["score"], abs=1e-4)
        assert len(mine["top_k"]) == 3


def test_batches_are_counted(apart: Server) -> None:
    with apart.client(apart.token()) as client:
        client.post("/api/v1/predict", json=TEXT).raise_for_status()
        metrics = client.get("/metrics").text
    rows = (row for row in metrics.splitlines() if row.startswith("kaiten_batch_items_count{"))
    (count,) = (float(row.rpartition(" ")[2]) for row in rows)
    assert count >= 1


def test_only_the_device_process_holds_the_model(apart: Server) -> None:
    *others, holder = family(apart)
    assert maps_a_network(holder)
    assert not any(maps_a_network(each) for each in others)


def test_killed_device_process_comes_back(apart: Server) -> None:
    family(apart)[-1].kill()
    apart.process.wait_for("device_process_ended")
    apart.process.wait_for("device_process_lost", count=2)
    apart.process.wait_for("device_process_found", count=4)
    until_ready(apart.url)
    with apart.client(apart.token()) as client:
        assert client.post("/api/v1/predict", json=TEXT).is_success


@pytest.mark.parametrize("by_force", [False, True])
def test_nothing_is_left_behind(
    by_force: bool,  # noqa: FBT001
    bentoml_home: Path,
    tmp_path: Path,
) -> None:
    env = environment(bentoml_home, tmp_path, KAITEN_RUNNERS__PROCESS="device")
    with serving(env) as server:
        *others, holder = family(server)
        try:
            if by_force:
                for each in others:
                    each.kill()
            else:
                assert server.process.stop() == 0
            holder.wait(STOP_LIMIT_S)
        finally:
            with suppress(psutil.NoSuchProcess):
                holder.kill()
    assert "Traceback" not in server.process.log
    if not by_force:
        sockets = Path(holder_arguments(server)).parent
        assert not sockets.exists()


def test_device_process_ends_with_a_start_that_is_given_up(
    bentoml_home: Path, tmp_path: Path
) -> None:
    command = [str(BIN / "kaiten"), "serve", "--port", str(free_port())]
    env = environment(bentoml_home, tmp_path, KAITEN_RUNNERS__PROCESS="device")
    with running(command, env) as process:
        (line,) = process.wait_for("device_process_started")
        holder = psutil.Process(json.loads(line)["process"])
        process.stop()
        try:
            holder.wait(STOP_LIMIT_S)
        finally:
            with suppress(psutil.NoSuchProcess):
                holder.kill()
    assert "Traceback" not in process.log


def holder_arguments(server: Server) -> str:
    """Return where the device process listened, as the log tells it."""
    (line,) = server.process.wait_for("device_process_found")
    socket: str = json.loads(line)["socket"]
    return socket
