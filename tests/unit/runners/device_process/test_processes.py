"""Which device process a worker asks, in which environment each is started, and that it is kept."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from kaiten.errors import InvalidSettings
from kaiten.settings.models import RunnerSettings
from runners.device_process import processes
from runners.device_process.processes import DeviceProcesses, make_socket_folder, socket_of
from runners.engines import cuda

SOCKETS, STORE, METRICS = Path("/run/sockets"), Path("/models"), Path("/metrics")


def environments(settings: RunnerSettings, workers: int) -> dict[Path, Any]:
    return DeviceProcesses(settings, workers, SOCKETS, STORE, METRICS)._environments


def see_devices(
    monkeypatch: pytest.MonkeyPatch, count: int, visible_devices: str | None = None
) -> None:
    monkeypatch.setattr(cuda, "count", lambda: count)
    if visible_devices is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible_devices)


def test_one_process_for_the_cpu() -> None:
    environment_by_socket = environments(RunnerSettings(device="cpu", process="device"), 4)
    assert environment_by_socket == {SOCKETS / "cpu.sock": {"PROMETHEUS_MULTIPROC_DIR": "/metrics"}}


@pytest.mark.parametrize(("workers", "names"), [(1, ["0"]), (2, ["0", "1"]), (5, ["0", "1"])])
def test_one_process_for_each_device_that_a_worker_is_on(
    workers: int, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    see_devices(monkeypatch, 2)
    environment_by_socket = environments(RunnerSettings(device="cuda", process="device"), workers)
    assert [*environment_by_socket] == [SOCKETS / f"{name}.sock" for name in names]
    for name, environment in zip(names, environment_by_socket.values(), strict=True):
        assert environment["CUDA_VISIBLE_DEVICES"] == name
        assert environment["KAITEN_RUNNERS__DEVICE"] == "cuda"


def test_worker_asks_the_process_of_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    slices = ["MIG-GPU-1/1/0", "MIG-GPU-1/2/0"]
    see_devices(monkeypatch, 1, ",".join(slices))
    settings = RunnerSettings(device="cuda", process="device", sockets=SOCKETS)
    sockets = [socket_of(settings, worker) for worker in range(3)]
    assert sockets == [SOCKETS / f"MIG-GPU-1_{part}_0.sock" for part in (1, 2, 1)]
    assert {*sockets} == {*environments(settings, 3)}
    pinned = settings.model_copy(update={"device": "cuda:1"})
    assert (
        {socket_of(pinned, worker) for worker in range(3)}
        == {sockets[1]}
        == {*environments(pinned, 3)}
    )


def test_worker_without_a_device_process_is_rejected() -> None:
    with pytest.raises(InvalidSettings, match="no device process was started"):
        socket_of(RunnerSettings(device="cpu", process="device"), 0)


def test_folder_of_sockets_is_our_own() -> None:
    folder = make_socket_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(str(folder / "MIG-12345678-1234-1234-1234-123456789012.sock").encode()) < 108


def test_process_that_ends_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = tmp_path / "starts"
    # It is given the socket, and the store, which it writes to here.
    program = "import sys; open(sys.argv[2], 'a').write(sys.argv[1] + '\\n'); sys.exit(3)"
    monkeypatch.setattr(processes, "_COMMAND", (sys.executable, "-c", program))
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise SystemExit

    monkeypatch.setattr(time, "sleep", sleep)
    device_processes = DeviceProcesses(RunnerSettings(device="cpu"), 1, tmp_path, starts, METRICS)
    with capture_logs() as logs, pytest.raises(SystemExit):
        device_processes._keep_running(
            tmp_path / "cpu.sock", device_processes._start(tmp_path / "cpu.sock")
        )
    assert waits == [2, 4, 8]
    assert starts.read_text().splitlines() == [str(tmp_path / "cpu.sock")] * 3
    events = [log["event"] for log in logs]
    assert events == ["device_process_started", "device_process_ended"] * 3
    assert {log["code"] for log in logs if "code" in log} == {3}


def test_process_that_can_not_be_started_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_COMMAND", (str(tmp_path / "absent"),))

    def sleep(_: float) -> None:
        raise SystemExit

    monkeypatch.setattr(time, "sleep", sleep)
    device_processes = DeviceProcesses(RunnerSettings(device="cpu"), 1, tmp_path, STORE, METRICS)
    with capture_logs() as logs, pytest.raises(SystemExit):
        device_processes._keep_running(
            tmp_path / "cpu.sock", device_processes._start(tmp_path / "cpu.sock")
        )
    assert [log["event"] for log in logs] == ["device_process_not_started"]
