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

# Ends the list for CUDA, as a name does that it can not find.
_ENDS = {"", "-1", "NoDevFiles"}
_MIG = "MIG-"


def devices(settings: RunnerSettings) -> list[str]:
    """Return the names of the devices to share out, in torch's order; none where none is wanted."""
    if settings.device == "cpu" or settings.engine == "onnx":
        return []
    return visible_devices(cuda_visible_devices(), cuda.count())


def visible_devices(named: str | None, seen: int) -> list[str]:
    """Return the names of the devices that there are, in the order in which torch numbers them.

    ``named`` is the value of CUDA_VISIBLE_DEVICES, None where it is not set; ``seen`` is how many
    devices torch sees under it.
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
    """Return the name of the device of a worker; workers are numbered from 0.

    ``device`` is the setting: auto and cuda share the workers out over all devices in turn, several
    to one where there are more workers; cuda:N puts them all on one. InvalidSettings where there is
    no such device.
    """
    _, _, index = device.partition(":")
    if int(index or 0) >= len(names):
        seen = f"{len(names) or 'no'} CUDA device{'s' * (len(names) > 1)}"
        raise InvalidSettings(
            [Detail("runners.device", f"is {device}, but torch sees {seen}; use cpu")], "runners"
        )
    return names[int(index)] if index else names[worker % len(names)]


def places(settings: RunnerSettings, workers: int) -> list[str]:
    """Return the name of each worker's device; none where no CUDA device is wanted."""
    names = devices(settings)
    return [place(settings.device, worker, names) for worker in range(workers if names else 0)]


def holders(settings: RunnerSettings, workers: int) -> int:
    """Return how many processes hold the models, and share the cores."""
    if settings.process == "worker":
        return workers
    return max(1, len({*places(settings, workers)}))


def place_of(settings: RunnerSettings, worker: int) -> str | None:
    """Return the name of the device that a worker was given; None where there is none to share out.

    The process that starts the workers has named the devices in CUDA_VISIBLE_DEVICES, and turned
    auto into what it found.
    """
    named = cuda_visible_devices()
    if named is None or not settings.device.startswith("cuda"):
        return None
    return place(settings.device, worker, visible_devices(named, len(named.split(","))))


def take_place(settings: RunnerSettings, worker: int) -> RunnerSettings:
    """Show this process its own device alone, and return the settings that hold from here.

    Call it in a worker before anything asks CUDA: what that has seen once, it goes on seeing.
    """
    name = place_of(settings, worker)
    if name is None:
        return settings
    set_cuda_visible_devices([name])
    return settings.model_copy(update={"device": "cuda"})
