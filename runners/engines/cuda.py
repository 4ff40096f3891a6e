"""The CUDA devices of this machine; torch is imported only if a driver offers some."""

import ctypes
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

_DRIVER = "libcuda.so.1"


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """A device by torch's name, with its total memory."""

    name: str
    memory_bytes: int


def count() -> int:
    """Return how many CUDA devices torch sees; it takes no memory on them."""
    # Importing torch takes seconds and 200 MB, which a server with ONNX Runtime should not pay.
    if not driver_count() or find_spec("torch") is None:
        return 0
    cuda = import_module("torch").cuda
    # The first is false where torch was built for the CPU, or for a newer driver.
    return int(cuda.device_count()) if cuda.is_available() else 0


def details() -> list[CudaDevice]:
    """Return the devices that torch sees; unlike count, it may take memory on them."""
    indices = range(count())
    devices = [import_module("torch").cuda.get_device_properties(index) for index in indices]
    return [CudaDevice(device.name, int(device.total_memory)) for device in devices]


def reserved_bytes() -> int:
    """Return the peak memory of this process on its CUDA device, as torch counts it."""
    return int(import_module("torch").cuda.max_memory_reserved())


def driver_count() -> int:
    """Return how many devices NVIDIA's driver offers, which obeys CUDA_VISIBLE_DEVICES."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return 0
    number = ctypes.c_int(0)
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(number))
    return 0 if failed else number.value
