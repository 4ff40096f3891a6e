"""Engines: how a loaded network computes one batch of token ids."""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from kaiten.errors import Detail, InvalidSettings
from kaiten.settings import Runners
from runners.engines import cuda
from runners.engines.base import Engine

MODEL_FILE = "onnx/model.onnx"
# What each engine is installed as.
PACKAGES = {"onnx": "onnxruntime", "torch": "torch"}


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The engine that computes a model, its device (cpu, cuda or cuda:N), and why, for people."""

    engine: Literal["onnx", "torch"]
    device: str
    reason: str

    def lanes(self, threads: int) -> int:
        """Return how many batches the engine computes at once, given so many threads."""
        return threads if self.engine == "onnx" else 1


def choose_engine(folder: Path, settings: Runners) -> EngineChoice:
    """Return what computes a registered model; nothing is loaded for it but torch, to see CUDA.

    InvalidSettings if the settings ask for what the model, this machine or its packages lack.
    On its own it takes a CUDA device where there is one, else ONNX Runtime where the model was
    exported to ONNX, else torch on the CPU.
    """
    exported = (folder / MODEL_FILE).is_file()
    if settings.engine == "onnx":
        _check_onnx(settings.device, exported=exported)
        choice = EngineChoice("onnx", "cpu", "runners.engine asks for it")
    elif settings.device.startswith("cuda"):
        _check_installed("torch")
        _check_cuda(settings.device)
        choice = EngineChoice("torch", settings.device, "runners.device asks for it")
    elif settings.device == "auto" and cuda.count():
        choice = EngineChoice("torch", "cuda", "torch sees a CUDA device")
    else:
        choice = _choose_on_cpu(settings, exported=exported)
    _check_installed(choice.engine)
    return choice


def open_engine(folder: Path, settings: Runners) -> Engine:
    """Load a registered model's network into the engine, and onto the device, that are chosen."""
    choice = choose_engine(folder, settings)
    # Imported here: who serves with one engine does not pay for the other.
    if choice.engine == "onnx":
        module, name = "onnx_engine", "OnnxEngine"
    else:
        module, name = "torch_engine", "TorchEngine"
    decided = settings.model_copy(update={"device": choice.device})
    engine: Engine = getattr(import_module(f"{__name__}.{module}"), name)(folder, decided)
    return engine


def _choose_on_cpu(settings: Runners, *, exported: bool) -> EngineChoice:
    if settings.engine == "torch":
        return EngineChoice("torch", "cpu", "runners.engine asks for it")
    place = "runners.device is cpu" if settings.device == "cpu" else "torch sees no CUDA device"
    if exported:
        return EngineChoice("onnx", "cpu", f"{place}, and the model was exported to ONNX")
    reason = f"{place}, and the model was not exported to ONNX (its card says why)"
    return EngineChoice("torch", "cpu", reason)


def _check_onnx(device: str, *, exported: bool) -> None:
    if not exported:
        reason = "is onnx, but the model was registered for torch (see its card); use auto"
    elif device.startswith("cuda"):
        reason = "is onnx, which computes on the CPU only; set runners.device to cpu"
    else:
        return
    raise InvalidSettings([Detail("runners.engine", reason)], "runners")


def _check_cuda(device: str) -> None:
    _, _, index = device.partition(":")
    seen = cuda.count()
    if int(index or 0) >= seen:
        reason = (
            f"is {device}, but torch sees {seen or 'no'} CUDA device{'s' * (seen > 1)}; use cpu"
        )
        raise InvalidSettings([Detail("runners.device", reason)], "runners")


def _check_installed(engine: str) -> None:
    package = PACKAGES[engine]
    if find_spec(package) is None:
        reason = f"comes to {engine}, but {package} is not installed; pip install {package}"
        raise InvalidSettings([Detail("runners.engine", reason)], "runners")
