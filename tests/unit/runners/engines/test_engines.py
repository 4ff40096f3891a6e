import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch

from kaiten.errors import InvalidSettings
from kaiten.settings.models import RunnerSettings
from runners import engines
from runners.engines import MODEL_FILE, EngineChoice, choose_engine, cuda, open_engine
from runners.engines.torch_engine import TorchEngine
from runners.tasks.text_classification.inspection import inspect

SetDeviceCount = Callable[[int], None]


@pytest.fixture
def set_device_count(monkeypatch: pytest.MonkeyPatch) -> SetDeviceCount:
    """Return what makes torch see so many CUDA devices."""
    return lambda number: monkeypatch.setattr(cuda, "count", lambda: number)


@pytest.fixture
def exported_model(tmp_path: Path) -> Path:
    (tmp_path / MODEL_FILE).parent.mkdir()
    (tmp_path / MODEL_FILE).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("device", "engine", "devices", "expected"),
    [
        ("auto", "auto", 0, ("onnx", "cpu", "torch sees no CUDA device")),
        ("auto", "auto", 1, ("torch", "cuda", "torch sees a CUDA device")),
        ("auto", "torch", 0, ("torch", "cpu", "runners.engine is set to it")),
        ("auto", "torch", 1, ("torch", "cuda", "torch sees a CUDA device")),
        ("auto", "onnx", 1, ("onnx", "cpu", "runners.engine is set to it")),
        ("cpu", "auto", 1, ("onnx", "cpu", "runners.device is cpu")),
        ("cpu", "torch", 1, ("torch", "cpu", "runners.engine is set to it")),
        ("cpu", "onnx", 0, ("onnx", "cpu", "runners.engine is set to it")),
        ("cuda", "auto", 1, ("torch", "cuda", "runners.device is set to it")),
        ("cuda:1", "torch", 2, ("torch", "cuda:1", "runners.device is set to it")),
    ],
)
def test_exported_model(
    device: str,
    engine: str,
    devices: int,
    expected: tuple[str, str, str],
    exported_model: Path,
    set_device_count: SetDeviceCount,
) -> None:
    set_device_count(devices)
    choice = choose_engine(
        exported_model, RunnerSettings.model_validate({"device": device, "engine": engine})
    )
    assert (choice.engine, choice.device) == expected[:2]
    assert choice.reason.startswith(expected[2])


@pytest.mark.parametrize(
    ("device", "devices", "expected"),
    [("auto", 0, "cpu"), ("cpu", 1, "cpu"), ("auto", 1, "cuda"), ("cuda", 1, "cuda")],
)
def test_model_that_was_not_exported_goes_to_torch(
    device: str, devices: int, expected: str, tmp_path: Path, set_device_count: SetDeviceCount
) -> None:
    set_device_count(devices)
    choice = choose_engine(tmp_path, RunnerSettings(device=device))
    assert (choice.engine, choice.device) == ("torch", expected)
    assert ("its card says why" in choice.reason) == (expected == "cpu")


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_onnx_is_refused_where_the_model_was_not_exported(
    device: str, tmp_path: Path, set_device_count: SetDeviceCount
) -> None:
    set_device_count(1)
    with pytest.raises(InvalidSettings, match=r"registered for torch .* use auto") as caught:
        choose_engine(tmp_path, RunnerSettings(device=device, engine="onnx"))
    assert [detail.field for detail in caught.value.details] == ["runners.engine"]


def test_onnx_is_refused_on_cuda(exported_model: Path, set_device_count: SetDeviceCount) -> None:
    set_device_count(1)
    with pytest.raises(InvalidSettings, match=r"CPU only; set runners\.device to cpu") as caught:
        choose_engine(exported_model, RunnerSettings(device="cuda", engine="onnx"))
    assert [detail.field for detail in caught.value.details] == ["runners.engine"]


@pytest.mark.parametrize(
    ("device", "devices", "message"),
    [
        ("cuda", 0, "no CUDA device"),
        ("cuda:1", 1, "1 CUDA device"),
        ("cuda:2", 2, "2 CUDA devices"),
    ],
)
def test_cuda_is_refused_where_torch_sees_no_such_device(
    device: str, devices: int, message: str, exported_model: Path, set_device_count: SetDeviceCount
) -> None:
    set_device_count(devices)
    with pytest.raises(InvalidSettings, match=f"is {device}, but .* {message}; use cpu") as caught:
        choose_engine(exported_model, RunnerSettings(device=device))
    assert [detail.field for detail in caught.value.details] == ["runners.device"]


@pytest.mark.parametrize(("device", "engine"), [("cpu", "onnx"), ("cuda", "torch")])
def test_missing_engine_is_rejected(
    device: str, engine: str, exported_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(engines.PACKAGES, engine, "no_such_package")
    with pytest.raises(InvalidSettings, match="pip install no_such_package"):
        choose_engine(exported_model, RunnerSettings(device=device))


@pytest.mark.parametrize(("name", "lanes"), [("onnx", 3), ("torch", 1)])
def test_reported_lanes_are_the_engines(
    name: Literal["onnx", "torch"], lanes: int, tiny_classifier: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_classifier, tmp_path, dirs_exist_ok=True)
    inspect(tiny_classifier, tmp_path)
    settings = RunnerSettings(device="cpu", engine=name, threads=3)
    assert EngineChoice(name, "cpu", "").lanes(3) == lanes
    assert open_engine(tmp_path, settings).lanes == lanes


def test_engine_is_opened_on_the_device_that_is_chosen(
    tiny_classifier: Path, set_device_count: SetDeviceCount
) -> None:
    set_device_count(0)
    engine = open_engine(tiny_classifier, RunnerSettings())
    assert isinstance(engine, TorchEngine)
    assert engine.device == torch.device("cpu")
