"""Which packages a bento installs: those that its models need, each pinned and with its hashes."""

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
from lifecycle.packaging.commands import run

Variant = Literal["cpu", "cuda"]
# What an image runs on: the lock is made for it, whatever the machine that builds.
PYTHON = "3.11"
_GLIBC, _MACHINE = "manylinux_2_28", "x86_64"
WHEELS = "wheels"
_TORCH = "torch"
# What has been exported to ONNX is served on a CPU without these, unless its card names them.
_FOR_SOME = {_TORCH, "transformers", "onnx", "sentencepiece"}
_REFUSAL = "There is no set of versions to install of"


@dataclass(frozen=True, slots=True)
class Lock:
    """A requirements file, and the wheel that it takes from the bento itself, if there is one."""

    text: str
    wheel: Path | None = None


def packages_for(cards: Iterable[ModelCard], variant: Variant) -> set[str]:
    """Return which of the packages that only some models need these ones need."""
    cards = list(cards)
    if variant == "cuda" or any(not card.engine or card.engine.name != "onnx" for card in cards):
        return {*_FOR_SOME}
    needed = {package for card in cards for package in card.packages}
    # transformers reads some vocabularies with it.
    return needed | ({"sentencepiece"} if "transformers" in needed else set())


def requirements(project: Path, extras: Sequence[str], needed: Collection[str]) -> list[str]:
    """Return what the project in this folder needs at run time, with its extras, as written.

    ``needed`` are those that only some models need (see packages_for).
    """
    told = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known: dict[str, list[str]] = told["optional-dependencies"]
    wanted = [*told["dependencies"], *(each for extra in extras for each in known[extra])]
    left_out = _FOR_SOME.difference(needed)
    return [each for each in wanted if Requirement(each).name not in left_out]


def lock(wanted: Sequence[str], constraints: Path, *, variant: Variant, source: str | None) -> Lock:
    """Pin these packages and all that they need, with the hashes of their files.

    The versions are those of ``constraints``, which were tested together. ``source`` is where torch
    is looked for, as find_torch takes it. BuildRefused where they can not be had.
    """
    pins = constraints.read_text(encoding="utf-8")
    others = [each for each in wanted if Requirement(each).name != _TORCH]
    if len(others) == len(wanted):
        return Lock(_compile(others, pins))
    pin = next(line for line in pins.splitlines() if line.startswith(f"{_TORCH}=="))
    if variant == "cuda" and source is None:
        return Lock(_compile([*others, pin], pins))  # What PyPI has is a CUDA build.
    url, digest = find_torch(pin, variant, source)
    line = f"{_TORCH} @ {url}"
    text = _compile([*others, line], pins.replace(f"{pin}\n", ""))
    kept = "".join(_blocks(text, without=_TORCH))
    if not url.startswith("file:"):
        return Lock(f"{kept}{line} \\\n    --hash=sha256:{digest}\n")
    wheel = Path(url2pathname(urlsplit(url).path))
    return Lock(f"{kept}./{WHEELS}/{wheel.name} \\\n    --hash=sha256:{digest}\n", wheel)


def find_torch(pin: str, variant: Variant, source: str | None) -> tuple[str, str]:
    """Return the address and the SHA-256 of the wheel of torch that pip finds.

    ``source`` is an index's URL, or a folder or page of wheels; without one it is what pip is set
    up to find. BuildRefused where there is none, or none for this variant.
    """
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = ["--dry-run", "--no-deps", "--ignore-installed", "--only-binary", ":all:"]
        platform = [
            "--python-version",
            PYTHON,
            "--platform",
            f"{_GLIBC}_{_MACHINE}",
            "--target",
            folder,
        ]
        command = [sys.executable, "-m", "pip", "install", "--quiet", *options, *platform]
        run([*command, *torch_options(source), "--report", str(report), pin], f"{_REFUSAL} torch")
        found = json.loads(report.read_bytes())["install"][0]
    needs = found["metadata"].get("requires_dist", [])
    if variant == "cpu" and any(each.startswith(("nvidia-", "cuda-")) for each in needs):
        raise BuildRefused(
            "The torch that is found is a CUDA build, of some GB. Set TORCH_SOURCE to where CPU "
            "builds are, such as https://download.pytorch.org/whl/cpu."
        )
    download: dict[str, Any] = found["download_info"]
    return download["url"], download["archive_info"]["hashes"]["sha256"]


def torch_options(source: str | None) -> list[str]:
    """Return pip's options to look for torch in this source, as the Makefile has them."""
    if source is None:
        return []
    is_index = "://" in source and not source.endswith(".html")
    return ["--extra-index-url" if is_index else "--find-links", source]


def _compile(wanted: Sequence[str], constraints: str) -> str:
    """Return the pins of these requirements and all that they need, as uv resolves them."""
    with TemporaryDirectory() as folder:
        given, pins, out = (Path(folder) / name for name in ("in.txt", "pins.txt", "out.txt"))
        given.write_text("\n".join(wanted) + "\n", encoding="utf-8")
        pins.write_text(constraints, encoding="utf-8")
        command = [sys.executable, "-m", "uv", "pip", "compile", str(given)]
        files = ["--constraints", str(pins), "--output-file", str(out)]
        options = ["--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
        target = ["--python-version", PYTHON, "--python-platform", f"{_MACHINE}-{_GLIBC}"]
        run([*command, *files, *options, *target], f"{_REFUSAL} the packages")
        return out.read_text(encoding="utf-8")


def _blocks(text: str, *, without: str) -> Iterable[str]:
    """Yield each requirement of a file with its hashes, but for those of one package."""
    keep = True
    for line in text.splitlines(keepends=True):
        if not line.startswith(" "):
            keep = not line.startswith((f"{without}==", f"{without} @"))
        if keep:
            yield line
