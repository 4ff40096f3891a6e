import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from runners.engines import cuda


class Driver:
    """A driver with so many devices, or one that fails to start with an error's number."""

    def __init__(self, devices: int, error: int = 0) -> None:
        self._devices = devices
        self._error = error

    def cuInit(self, flags: int) -> int:  # noqa: N802  the driver's own name
        return self._error

    def cuDeviceGetCount(self, number: Any) -> int:  # noqa: ANN401, N802
        number._obj.value = self._devices
        return 0


def install(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)


def make_torch_see(devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)


def test_without_a_driver_torch_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_DRIVER", "libnosuchdriver.so.1")
    make_torch_see(1, monkeypatch)
    assert cuda.driver_count() == 0
    assert cuda.count() == 0
    assert cuda.details() == []


@pytest.mark.parametrize(
    ("driver", "expected"), [(Driver(2), 2), (Driver(0), 0), (Driver(2, 100), 0)]
)
def test_driver_reports_its_devices(
    driver: Driver, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(driver, monkeypatch)
    assert cuda.driver_count() == expected


@pytest.mark.parametrize("devices", [0, 1])
def test_torch_has_the_last_word(devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    install(Driver(2), monkeypatch)
    make_torch_see(devices, monkeypatch)
    assert cuda.count() == devices


def test_devices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install(Driver(1), monkeypatch)
    make_torch_see(1, monkeypatch)
    properties = SimpleNamespace(name="NVIDIA L4", total_memory=24 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    assert cuda.details() == [cuda.CudaDevice("NVIDIA L4", 24 << 30)]
