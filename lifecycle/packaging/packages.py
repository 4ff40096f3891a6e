"""The packages that a bento installs: those its models need, pinned, with hashes."""

import json
import sys
import tomllib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

from packaging.requirements import Requirement

from kaiten.errors import BuildRefused
from lifecycle.card import ModelCard
from lifecycle.commands import run_command

Variant = Literal["cpu", "cuda"]
# The image's platform; the lock file is made for it on any machine.
PYTHON = "3.11"
_GLIBC, _MACHINE = "manylinux_2_28", "x86_64"
WHEELS = "wheels"
_TORCH = "torch"
# A model that was exported to ONNX needs none of these on a CPU, unless its card names them.
_OPTIONAL = {_TORCH, "transformers", "onnx", "sentencepiece"}
_REFUSAL = "No set of versions can be installed for"


@dataclass(frozen=True, slots=True)
class LockFile:
    """A requirements file, and the wheel that the bento itself carries for it, if any."""

    text: str
    wheel: Path | None = None


def optional_packages(cards: Iterable[ModelCard], variant: Variant) -> set[str]:
    """Return the packages that these models need and that not every model needs."""
    cards = list(cards)
    if variant == "cuda" or any(not card.engine or card.engine.name != "onnx" for card in cards):
        return {*_OPTIONAL}
    packages = {package for card in cards for package in card.packages}
    # transformers reads some vocabularies with it.
    return packages | ({"sentencepiece"} if "transformers" in packages else set())


def read_requirements(project: Path, extras: Sequence[str], optional: Collection[str]) -> list[str]:
    """Return the run-time requirements of the project in this folder, with its extras.

    ``optional`` are the packages that only some models need (see optional_packages).
    """
    text = (project / "requirements.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    metadata = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines += [line for extra in extras for line in metadata["optional-dependencies"][extra]]
    excluded = _OPTIONAL.difference(optional)
    return [line for line in lines if Requirement(line).name not in excluded]


def lock_packages(
    requirements: Sequence[str], constraints: Path, *, variant: Variant, source: str | None
) -> LockFile:
    """Pin these requirements and their dependencies, with the hashes of their files.

    The versions are those of ``constraints``, which were tested together. ``source`` is where to
    look for torch, as in find_torch.

    Raises:
        BuildRefused: The packages cannot be resolved.

    """
    pins = constraints.read_text(encoding="utf-8")
    without_torch = [line for line in requirements if Requirement(line).name != _TORCH]
    if len(without_torch) == len(requirements):
        return LockFile(_compile(without_torch, pins))
    pin = next(line for line in pins.splitlines() if line.startswith(f"{_TORCH}=="))
    if variant == "cuda" and source is None:
        return LockFile(_compile([*without_torch, pin], pins))  # PyPI has the CUDA build.
    url, digest = find_torch(pin, variant, source)
    line = f"{_TORCH} @ {url}"
    text = _compile([*without_torch, line], pins.replace(f"{pin}\n", ""))
    locked = "".join(_blocks(text, without=_TORCH))
    if not url.startswith("file:"):
        return LockFile(f"{locked}{line} \\\n    --hash=sha256:{digest}\n")
    wheel = Path(url2pathname(urlsplit(url).path))
    return LockFile(f"{locked}./{WHEELS}/{wheel.name} \\\n    --hash=sha256:{digest}\n", wheel)


def find_torch(pin: str, variant: Variant, source: str | None) -> tuple[str, str]:
    """Return the URL and the SHA-256 of the wheel of torch that pip finds.

    ``source`` is an index's URL, or a folder or page of wheels; None means the sources that pip is
    configured with. uv does not see the CPU builds that pip finds.

    Raises:
        BuildRefused: There is no such wheel, or none of this variant.

    """
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = ["--dry-run", "--no-deps", "--ignore-installed", "--only-binary", ":all:"]
        options += ["--python-version", PYTHON, "--platform", f"{_GLIBC}_{_MACHINE}"]
        options += ["--target", folder, *torch_options(source), "--report", str(report)]
        command = [sys.executable, "-m", "pip", "install", "--quiet", *options, pin]
        run_command(command, f"{_REFUSAL} torch")
        package = json.loads(report.read_bytes())["install"][0]
    dependencies = package["metadata"].get("requires_dist", [])
    if variant == "cpu" and any(line.startswith(("nvidia-", "cuda-")) for line in dependencies):
        raise BuildRefused(
            "pip finds a CUDA build of torch, of several GB. Set TORCH_SOURCE to a source of CPU "
            "builds, such as https://download.pytorch.org/whl/cpu."
        )
    download: dict[str, Any] = package["download_info"]
    return download["url"], download["archive_info"]["hashes"]["sha256"]


def torch_options(source: str | None) -> list[str]:
    """Return pip's options to look for torch in this source, as the Makefile has them."""
    if source is None:
        return []
    is_index = "://" in source and not source.endswith(".html")
    return ["--extra-index-url" if is_index else "--find-links", source]


def _compile(requirements: Sequence[str], constraints: str) -> str:
    """Return the pins of these requirements and their dependencies, as uv resolves them."""
    with TemporaryDirectory() as folder:
        source, pins, out = (Path(folder) / name for name in ("in.txt", "pins.txt", "out.txt"))
        source.write_text("\n".join(requirements) + "\n", encoding="utf-8")
        pins.write_text(constraints, encoding="utf-8")
        command = [sys.executable, "-m", "uv", "pip", "compile", str(source)]
        files = ["--constraints", str(pins), "--output-file", str(out)]
        options = ["--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
        target = ["--python-version", PYTHON, "--python-platform", f"{_MACHINE}-{_GLIBC}"]
        run_command([*command, *files, *options, *target], f"{_REFUSAL} the packages")
        return out.read_text(encoding="utf-8")


def _blocks(text: str, *, without: str) -> Iterable[str]:
    """Yield the lines of a requirements file, except those of one package."""
    keep = True
    for line in text.splitlines(keepends=True):
        if not line.startswith(" "):
            keep = not line.startswith((f"{without}==", f"{without} @"))
        if keep:
            yield line
