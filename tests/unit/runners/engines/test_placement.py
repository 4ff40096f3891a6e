import os

import pytest

from kaiten.errors import InvalidSettings
from kaiten.settings.models import RunnerSettings
from runners.engines import cuda
from runners.engines.placement import devices, place, take_place, visible_devices

TWO_SLICES = "MIG-1f2e3d,MIG-GPU-8f14e45f/1/0"


@pytest.mark.parametrize(
    ("variable", "device_count", "expected"),
    [
        (None, 0, []),
        (None, 2, ["0", "1"]),
        ("3", 1, ["3"]),
        ("3, 1", 2, ["3", "1"]),
        ("GPU-8f14e45f,0", 2, ["GPU-8f14e45f", "0"]),
        # CUDA stops at a name that it cannot find, and so sees fewer.
        ("0,9,1", 1, ["0"]),
        ("0,-1,1", 1, ["0"]),
        ("", 0, []),
        ("-1", 0, []),
        ("NoDevFiles", 0, []),
        (TWO_SLICES, 1, TWO_SLICES.split(",")),
        (TWO_SLICES, 0, []),
    ],
)
def test_devices_are_those_that_cuda_would_see(
    variable: str | None, device_count: int, expected: list[str]
) -> None:
    assert visible_devices(variable, device_count) == expected


@pytest.mark.parametrize(
    ("device", "names", "expected"),
    [
        ("cuda", ["4", "7"], ["4", "7", "4", "7"]),
        ("auto", ["4", "7", "8"], ["4", "7", "8", "4"]),
        ("cuda", ["GPU-1"], ["GPU-1"] * 4),
        ("cuda:1", ["4", "7"], ["7"] * 4),
    ],
)
def test_workers_are_shared_out_in_turn(device: str, names: list[str], expected: list[str]) -> None:
    assert [place(device, worker, names) for worker in range(4)] == expected


@pytest.mark.parametrize(
    ("device", "names", "message"),
    [
        ("cuda", [], "no CUDA device"),
        ("cuda:1", ["5"], "1 CUDA device"),
        ("cuda:2", ["5", "6"], "2 CUDA devices"),
    ],
)
def test_missing_device_is_rejected(device: str, names: list[str], message: str) -> None:
    with pytest.raises(
        InvalidSettings, match=f"is {device}, but torch sees {message}; use cpu"
    ) as caught:
        place(device, 0, names)
    assert [detail.field for detail in caught.value.details] == ["runners.device"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (RunnerSettings(), ["0", "1"]),
        (RunnerSettings(device="cuda:1"), ["0", "1"]),
        (RunnerSettings(device="cpu"), []),
        (RunnerSettings(engine="onnx"), []),
    ],
)
def test_devices_are_shared_out_where_they_are_wanted(
    settings: RunnerSettings, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(cuda, "count", lambda: 2)
    assert devices(settings) == expected


@pytest.mark.parametrize(
    ("device", "worker", "visible_device", "device_after"),
    [
        # What starts the workers has found nothing, or auto would be cuda.
        ("auto", 0, "MIG-a,MIG-b", "auto"),
        ("cuda", 0, "MIG-a", "cuda"),
        ("cuda", 1, "MIG-b", "cuda"),
        ("cuda", 2, "MIG-a", "cuda"),
        # The one that is left is the first.
        ("cuda:1", 0, "MIG-b", "cuda"),
        ("cpu", 1, "MIG-a,MIG-b", "cpu"),
    ],
)
def test_a_worker_sees_its_own_device_alone(
    device: str,
    worker: int,
    visible_device: str,
    device_after: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a,MIG-b")
    assert take_place(RunnerSettings(device=device), worker).device == device_after
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible_device


def test_without_names_torch_numbers_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert take_place(RunnerSettings(device="cuda:1"), 0) == RunnerSettings(device="cuda:1")
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_device_is_rejected_if_all_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(InvalidSettings, match="no CUDA device"):
        take_place(RunnerSettings(device="cuda"), 0)
