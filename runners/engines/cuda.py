"""The CUDA devices there are, told without importing torch where no driver offers any."""

import ctypes
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

_DRIVER = "libcuda.so.1"


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """A device as torch names it; its whole memory in bytes."""

    name: str
    memory_bytes: int


def count() -> int:
    """Return how many CUDA devices torch sees; it takes no memory on them."""
    # Importing torch costs seconds and 200 MB, which who serves with ONNX Runtime should not pay.
    if not driver_count() or find_spec("torch") is None:
        return 0
    cuda = import_module("torch").cuda
    # The first is false where torch was built for the CPU, or for a newer driver.
    return int(cuda.device_count()) if cuda.is_available() else 0


def details() -> list[CudaDevice]:
    """Tell of the devices that torch sees; unlike count, it may take memory on them."""
    found = range(count())
    properties = [import_module("torch").cuda.get_device_properties(index) for index in found]
    return [CudaDevice(each.name, int(each.total_memory)) for each in properties]


def reserved_bytes() -> int:
    """Return the most memory that this process has held on its CUDA device, as torch counts it."""
    return int(import_module("torch").cuda.max_memory_reserved())


def driver_count() -> int:
    """Return how many devices NVIDIA's driver offers; it heeds CUDA_VISIBLE_DEVICES itself."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return 0
    number = ctypes.c_int(0)
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(number))
    return 0 if failed else number.value
