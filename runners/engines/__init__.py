"""Engines: how a loaded network computes one batch of token ids."""

from importlib import import_module
from pathlib import Path

from kaiten.errors import Detail, InvalidSettings
from kaiten.settings import Runners
from runners.engines.base import Engine

MODEL_FILE = "onnx/model.onnx"


def choose_engine(folder: Path, settings: Runners) -> str:
    """Return onnx or torch; InvalidSettings if the settings ask for what the model does not have.

    On its own it takes ONNX Runtime where the model was exported and no CUDA device is asked for.
    """
    exported = (folder / MODEL_FILE).is_file()
    on_cuda = settings.device.startswith("cuda")
    if settings.engine == "onnx" and (on_cuda or not exported):
        reason = "is onnx, which computes on the CPU only; set runners.device to cpu"
        if not exported:
            reason = "is onnx, but the model was registered for torch (see its card); use auto"
        raise InvalidSettings([Detail("runners.engine", reason)], "runners")
    return "torch" if settings.engine == "torch" or on_cuda or not exported else "onnx"


def open_engine(folder: Path, settings: Runners) -> Engine:
    """Load a registered model's network into the engine that choose_engine names."""
    # Imported here: who serves with one engine does not pay for the other.
    if choose_engine(folder, settings) == "onnx":
        module, name = "onnx_engine", "OnnxEngine"
    else:
        module, name = "torch_engine", "TorchEngine"
    engine: Engine = getattr(import_module(f"{__name__}.{module}"), name)(folder, settings)
    return engine
