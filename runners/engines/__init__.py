"""Engines: how a loaded network computes one batch of token ids."""

from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import structlog

from kaiten.errors import Detail, InvalidSettings
from kaiten.installation import install_command
from kaiten.settings.models import RunnerSettings
from runners.engines import cuda
from runners.engines.base import Engine, TokenBatch
from runners.engines.placement import devices, place

logger = structlog.get_logger(__name__)
MODEL_FILE = "onnx/model.onnx"
# Beside it if the model takes longer texts: how many tokens the exported network computes.
LIMIT_FILE = "onnx/max_tokens"
# An exported network multiplies plain matrices, and so holds all of a text's attention at once:
# 3 GB for 8,192 tokens in a small model. torch's own attention does not.
MAX_TOKENS = 1024
# One batch is copied and answered while another computes.
CUDA_LANES = 2
# What each engine is installed as.
PACKAGES = {"onnx": "onnxruntime", "torch": "torch"}


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The engine for a model, its device (cpu, cuda or cuda:N), and the reason, for people."""

    engine: Literal["onnx", "torch"]
    device: str
    reason: str
    # ONNX Runtime computes texts of up to so many tokens, and torch longer ones. None: no limit.
    max_onnx_tokens: int | None = None

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages whose versions may change its predictions."""
        onnx = ("onnxruntime",) if self.engine == "onnx" else ()
        torch = ("torch", "transformers") if self.needs_torch else ()
        return (*onnx, *torch, "tokenizers", "numpy")

    @property
    def needs_torch(self) -> bool:
        """Whether torch computes any text."""
        return self.engine == "torch" or self.max_onnx_tokens is not None

    @property
    def newest_opset(self) -> int | None:
        """The newest opset that it computes; None if it does not compute ONNX."""
        if self.engine != "onnx":
            return None
        newest: int = import_module(f"{__name__}.onnx_engine").newest_opset()
        return newest

    def lanes(self, threads: int) -> int:
        """Return how many batches the engine computes at once with so many threads."""
        if self.engine == "onnx":
            return threads
        return 1 if self.device == "cpu" else CUDA_LANES


def choose_engine(folder: Path, settings: RunnerSettings) -> EngineChoice:
    """Return the engine and the device for a registered model, without loading it.

    By default that is a CUDA device if torch sees one, else ONNX Runtime if the model was exported
    to ONNX, else torch on the CPU.

    Raises:
        InvalidSettings: The model, this machine or its packages do not support the settings.

    """
    exported, limit = (folder / MODEL_FILE).is_file(), _read_limit(folder)
    if settings.engine == "onnx":
        _check_onnx(settings.device, exported=exported)
        choice = EngineChoice("onnx", "cpu", "runners.engine is set to it", limit)
    elif settings.device.startswith("cuda"):
        _check_installed("torch")
        place(settings.device, 0, devices(settings))
        choice = EngineChoice("torch", settings.device, "runners.device is set to it")
    elif settings.device == "auto" and cuda.count():
        choice = EngineChoice("torch", "cuda", "torch sees a CUDA device")
    else:
        choice = _choose_on_cpu(settings, exported=exported, limit=limit)
    _check_installed(choice.engine)
    if choice.needs_torch:
        _check_installed("torch")
    return choice


def _read_limit(folder: Path) -> int | None:
    try:
        return int((folder / LIMIT_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def open_engine(
    folder: Path, settings: RunnerSettings, samples: TokenBatch | None = None
) -> Engine:
    """Load a registered model's network with its engine, onto its device.

    Half precision is tried on ``samples``, and not used without any.
    """
    choice = choose_engine(folder, settings)
    logger.info("engine_opened", **asdict(choice))
    decided = settings.model_copy(update={"device": choice.device})
    # Imported here, because a server with one engine must not load the others.
    if choice.max_onnx_tokens is not None:
        engine: Engine = _class_of("long_texts", "LongTextEngine")(
            folder, decided, samples, choice.max_onnx_tokens
        )
    elif choice.engine == "onnx":
        engine = _class_of("onnx_engine", "OnnxEngine")(folder, decided)
    elif choice.device == "cpu":
        engine = _class_of("torch_engine", "TorchEngine")(folder, decided)
    else:
        engine = _class_of("cuda_engine", "CudaEngine")(folder, decided, samples)
    return engine


def _class_of(module: str, name: str) -> Any:  # noqa: ANN401  the constructors differ
    return getattr(import_module(f"{__name__}.{module}"), name)


def _choose_on_cpu(settings: RunnerSettings, *, exported: bool, limit: int | None) -> EngineChoice:
    if settings.engine == "torch":
        return EngineChoice("torch", "cpu", "runners.engine is set to it")
    cause = "runners.device is cpu" if settings.device == "cpu" else "torch sees no CUDA device"
    if exported:
        long_texts = "" if limit is None else f"; torch computes texts of over {limit:,} tokens"
        return EngineChoice(
            "onnx", "cpu", f"{cause}, and the model was exported to ONNX{long_texts}", limit
        )
    reason = f"{cause}, and the model was not exported to ONNX (its card says why)"
    return EngineChoice("torch", "cpu", reason)


def _check_onnx(device: str, *, exported: bool) -> None:
    if not exported:
        reason = "is onnx, but the model was registered for torch (see its card); use auto"
    elif device.startswith("cuda"):
        reason = "is onnx, which computes on the CPU only; set runners.device to cpu"
    else:
        return
    raise InvalidSettings([Detail("runners.engine", reason)], "runners")


def _check_installed(engine: str) -> None:
    package = PACKAGES[engine]
    if find_spec(package) is None:
        reason = (
            f"results in {engine}, but {package} is not installed; build the image with this "
            f"setting, or run: {install_command([package])}"
        )
        raise InvalidSettings([Detail("runners.engine", reason)], "runners")
