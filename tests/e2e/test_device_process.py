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
def device_server(bentoml_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("apart")
    workers = "services.kaiten_service.workers=2"
    settings = {"BENTOML_CONFIG_OPTIONS": workers, "KAITEN_RUNNERS__PROCESS": "device"}
    with serving(environment(bentoml_home, home, **settings)) as server:
        server.process.wait_for("device_process_found", count=2)
        yield server


def family(server: Server) -> list[psutil.Process]:
    """Return the server's processes, that which holds the models last."""
    parent = psutil.Process(server.process.popen.pid)
    processes = [parent, *parent.children(recursive=True)]
    return sorted(processes, key=lambda process: "cli device" in " ".join(process.cmdline()))


def maps_a_network(process: psutil.Process) -> bool:
    return any("onnxruntime" in mapped.path for mapped in process.memory_maps())


def test_answers_are_those_of_a_worker_that_holds_the_model(
    device_server: Server, server: Server, texts: list[str]
) -> None:
    answers = []
    for instance in (device_server, server):
        with instance.client(instance.token()) as client:
            response = client.post("/api/v2/predict", json={"inputs": texts[:200], "top_k": 3})
            answers.append(response.raise_for_status().json()["predictions"])
    for prediction, reference in zip(*answers, strict=True):
        assert prediction["label"] == reference["label"]
        assert prediction["score"] == pytest.approx(reference["score"], abs=1e-4)
        assert len(prediction["top_k"]) == 3


def test_batches_are_counted(device_server: Server) -> None:
    with device_server.client(device_server.token()) as client:
        client.post("/api/v1/predict", json=TEXT).raise_for_status()
        metrics = client.get("/metrics").text
    rows = (row for row in metrics.splitlines() if row.startswith("kaiten_batch_items_count{"))
    (count,) = (float(row.rpartition(" ")[2]) for row in rows)
    assert count >= 1


def test_only_the_device_process_holds_the_model(device_server: Server) -> None:
    *other_processes, holder = family(device_server)
    assert maps_a_network(holder)
    assert not any(maps_a_network(process) for process in other_processes)


def test_killed_device_process_comes_back(device_server: Server) -> None:
    family(device_server)[-1].kill()
    device_server.process.wait_for("device_process_ended")
    device_server.process.wait_for("device_process_lost", count=2)
    device_server.process.wait_for("device_process_found", count=4)
    until_ready(device_server.url)
    with device_server.client(device_server.token()) as client:
        assert client.post("/api/v1/predict", json=TEXT).is_success


@pytest.mark.parametrize("by_force", [False, True])
def test_nothing_is_left_behind(
    by_force: bool,  # noqa: FBT001
    bentoml_home: Path,
    tmp_path: Path,
) -> None:
    env = environment(bentoml_home, tmp_path, KAITEN_RUNNERS__PROCESS="device")
    with serving(env) as server:
        *other_processes, holder = family(server)
        try:
            if by_force:
                for process in other_processes:
                    process.kill()
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
