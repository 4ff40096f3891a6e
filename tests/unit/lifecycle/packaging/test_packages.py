"""Which packages a bento installs, and in which versions."""

import hashlib
from pathlib import Path

import pytest

from kaiten.errors import BuildRefused
from kaiten.settings.environment import ROOT
from lifecycle.card import EngineCard
from lifecycle.packaging.packages import (
    lock_packages,
    optional_packages,
    read_requirements,
    torch_options,
)
from tests.unit.lifecycle.cards import card
from tests.unit.lifecycle.packaging.wheels import wheel

ON_TORCH = EngineCard(name="torch", reason="for a test")
CPU_WHEEL = "cp311-cp311-manylinux_2_28_x86_64"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of wheels, which is all that uv and pip can find."""
    for tool in ("UV", "PIP"):
        monkeypatch.setenv(f"{tool}_FIND_LINKS", str(tmp_path))
    # uv has no variable for it.
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"file://{tmp_path}/none")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "none").mkdir()
    wheel(tmp_path, "ours", "1.0.0", ["theirs"])
    for version in ("1.1.0", "1.2.0"):
        wheel(tmp_path, "theirs", version)
    return tmp_path


@pytest.fixture
def constraints(tmp_path: Path) -> Path:
    file = tmp_path / "constraints.txt"
    file.write_text("ours==1.0.0\ntheirs==1.1.0\ntorch==2.13.0\n")
    return file


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_torch_is_left_out_where_onnx_runtime_serves_every_model() -> None:
    assert optional_packages([card()], "cpu") == set()
    assert "torch" in optional_packages([card()], "cuda")
    assert "torch" in optional_packages([card(), card(engine=ON_TORCH)], "cpu")
    assert "torch" in optional_packages([card(engine=None)], "cpu")


def test_packages_that_a_card_names_are_installed() -> None:
    long = card(packages=("torch", "transformers"))
    assert optional_packages([card(), long], "cpu") >= {"torch", "transformers"}
    slow = card(packages=("transformers",))
    assert optional_packages([slow], "cpu") == {"transformers", "sentencepiece"}


def test_requirements_are_those_of_the_project() -> None:
    full_requirements = read_requirements(ROOT, ["postgres"], optional_packages([], "cuda"))
    assert {line.split(">")[0] for line in full_requirements} >= {
        "bentoml",
        "torch",
        "transformers",
        "onnx",
    }
    lean_requirements = read_requirements(ROOT, ["postgres"], set())
    missing = {line.split(">")[0] for line in full_requirements if line not in lean_requirements}
    assert missing == {"torch", "transformers", "onnx", "sentencepiece"}
    assert "psycopg[binary]>=3.2,<4" in lean_requirements
    assert "psycopg[binary]>=3.2,<4" not in read_requirements(ROOT, [], set())


def test_lock_takes_the_versions_that_were_tested(wheels: Path, constraints: Path) -> None:
    locked = lock_packages(["ours"], constraints, variant="cpu", source=None)
    digest = sha256(wheels / "theirs-1.1.0-py3-none-any.whl")
    assert f"theirs==1.1.0 \\\n    --hash=sha256:{digest}\n" in locked.text
    assert locked.text.startswith("ours==1.0.0")
    assert locked.wheel is None


@pytest.mark.usefixtures("wheels")
def test_package_that_is_nowhere_is_rejected(constraints: Path) -> None:
    with pytest.raises(BuildRefused, match="absent"):
        lock_packages(["absent"], constraints, variant="cpu", source=None)


def test_torch_of_a_folder_goes_into_the_bento(wheels: Path, constraints: Path) -> None:
    torch = wheel(wheels, "torch", "2.13.0+cpu", ["theirs"], CPU_WHEEL)
    locked = lock_packages(["ours", "torch"], constraints, variant="cpu", source=str(wheels))
    assert locked.wheel == torch
    assert locked.text.endswith(f"./wheels/{torch.name} \\\n    --hash=sha256:{sha256(torch)}\n")
    assert "torch @" not in locked.text
    assert "theirs==1.1.0" in locked.text


def test_cuda_build_is_no_torch_for_a_cpu(wheels: Path, constraints: Path) -> None:
    wheel(wheels, "nvidia_cublas", "13.0")
    wheel(wheels, "torch", "2.13.0", ["nvidia-cublas"], CPU_WHEEL)
    with pytest.raises(BuildRefused, match="TORCH_SOURCE"):
        lock_packages(["torch"], constraints, variant="cpu", source=None)
    locked = lock_packages(["torch"], constraints, variant="cuda", source=None)
    assert "nvidia-cublas==13.0" in locked.text
    assert locked.text.count("torch==2.13.0") == 1


@pytest.mark.parametrize(
    ("source", "option"),
    [
        ("https://example.org/whl/cpu", "--extra-index-url"),
        ("https://example.org/torch.html", "--find-links"),
        ("/wheels", "--find-links"),
    ],
)
def test_source_of_torch_is_an_index_or_a_place_of_wheels(source: str, option: str) -> None:
    assert torch_options(source) == [option, source]
    assert torch_options(None) == []
