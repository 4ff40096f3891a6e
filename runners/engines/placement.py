"""Which CUDA device each worker computes on.

Devices are named as CUDA_VISIBLE_DEVICES names them: by number, by UUID (``GPU-...``) or by the
name of a MIG slice (``MIG-...``). A worker is shown its own device alone: a process sees no second
MIG slice, and takes memory on every device that it looks at.
"""

from collections.abc import Sequence

from kaiten.errors import Detail, InvalidSettings
from kaiten.settings.environment import cuda_visible_devices, set_cuda_visible_devices
from kaiten.settings.models import RunnerSettings
from runners.engines import cuda

# CUDA ends the list at these, as at a name that it cannot find.
_ENDS = {"", "-1", "NoDevFiles"}
_MIG = "MIG-"


def devices(settings: RunnerSettings) -> list[str]:
    """Return the names of the devices to share out, in torch's order; none for CPU settings."""
    if settings.device == "cpu" or settings.engine == "onnx":
        return []
    return visible_devices(cuda_visible_devices(), cuda.count())


def visible_devices(named: str | None, seen: int) -> list[str]:
    """Return the names of the visible devices, in torch's order.

    ``named`` is the value of CUDA_VISIBLE_DEVICES, None if it is not set, and ``seen`` the number
    of devices that torch sees with it.
    """
    if named is None:
        return [str(number) for number in range(seen)]
    names: list[str] = []
    for name in map(str.strip, named.split(",")):
        if name in _ENDS:
            break
        names.append(name)
    # Of several MIG slices a process sees the first; each worker is given its own.
    if seen and all(name.startswith(_MIG) for name in names):
        return names
    return names[:seen]


def place(device: str, worker: int, names: Sequence[str]) -> str:
    """Return the name of a worker's device; workers are numbered from 0.

    ``device`` is the setting: auto and cuda assign the devices to workers in turn, and cuda:N
    assigns one device to all workers.

    Raises:
        InvalidSettings: There is no such device.

    """
    _, _, index = device.partition(":")
    if int(index or 0) >= len(names):
        visible_devices = f"{len(names) or 'no'} CUDA device{'s' * (len(names) > 1)}"
        reason = f"is {device}, but torch sees {visible_devices}; use cpu"
        raise InvalidSettings([Detail("runners.device", reason)], "runners")
    return names[int(index)] if index else names[worker % len(names)]


def places(settings: RunnerSettings, workers: int) -> list[str]:
    """Return the name of each worker's device; none for CPU settings."""
    names = devices(settings)
    return [place(settings.device, worker, names) for worker in range(workers if names else 0)]


def holders(settings: RunnerSettings, workers: int) -> int:
    """Return the number of processes that load the models and share the cores."""
    if settings.process == "worker":
        return workers
    return max(1, len({*places(settings, workers)}))


def place_of(settings: RunnerSettings, worker: int) -> str | None:
    """Return the name of a worker's assigned device; None without CUDA devices.

    The process that starts the workers has set CUDA_VISIBLE_DEVICES, and replaced auto.
    """
    named = cuda_visible_devices()
    if named is None or not settings.device.startswith("cuda"):
        return None
    return place(settings.device, worker, visible_devices(named, len(named.split(","))))


def take_place(settings: RunnerSettings, worker: int) -> RunnerSettings:
    """Hide all devices but its own from this process, and return its settings.

    Call it in a worker before anything uses CUDA, which reads the variable once.
    """
    name = place_of(settings, worker)
    if name is None:
        return settings
    set_cuda_visible_devices([name])
    return settings.model_copy(update={"device": "cuda"})
