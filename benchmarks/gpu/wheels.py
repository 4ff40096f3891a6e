"""What a GPU machine without a network needs beside its own torch and transformers.

`python benchmarks/gpu/wheels.py collect FOLDER` downloads the wheels, here, and `... install FOLDER
ENV` makes an environment of the machine's own packages and those, there. Installing uses the
standard library alone, as such a machine may lack pip.
"""

import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

_PYTHON = "3.12"
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux2014_x86_64", "manylinux_2_17_x86_64")
# The packages of the server, and those that its tests need.
_SERVER = Path(__file__).resolve().parents[2] / "requirements.txt"
_TESTS = ("pytest", "pytest-asyncio", "hypothesis")
# The machine's own: its torch fits its driver, and these fit that torch.
_MACHINE_PACKAGES = {
    *("torch", "transformers", "tokenizers", "safetensors", "numpy", "onnxruntime"),
    "huggingface-hub",
}
# Asked for, and never used where a model is served.
_UNUSED = {"uv"}
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def package_pins() -> list[str]:
    """Return each package to carry, pinned to the version that is installed here."""
    versions: dict[str, str] = {}
    server = _SERVER.read_text(encoding="utf-8").splitlines()
    waiting = [*_names(server), *_TESTS]
    visited_names = {*_MACHINE_PACKAGES, *_UNUSED}
    while waiting:
        name = waiting.pop()
        if name in visited_names:
            continue
        visited_names.add(name)
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            # For another platform, or another Python.
            continue
        waiting += [
            required for required in _names(requires(name) or []) if required not in visited_names
        ]
    return [f"{name}=={versions[name]}" for name in sorted(versions)]


def _names(requirements: Iterable[str]) -> Iterator[str]:
    """Yield the names of the packages that are required without any extra."""
    for line in requirements:
        match = _NAME.match(line)
        if match is not None and "extra ==" not in line:
            yield re.sub(r"[-_.]+", "-", match[0]).lower()


def collect(folder: Path) -> None:
    """Download the wheels for the GPU machine's Python."""
    platforms = [part for name in _PLATFORMS for part in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    target = ["--python-version", _PYTHON, "--only-binary=:all:", *platforms]
    folder.mkdir(parents=True, exist_ok=True)
    for outdated in folder.glob("*.whl"):
        outdated.unlink()
    subprocess.run([*command, "--no-deps", *target, "-d", str(folder), *package_pins()], check=True)
    wheels = [*folder.glob("*.whl")]
    size = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    print(f"{len(wheels)} wheels, {size:.0f} MiB, in {folder}")


def install(folder: Path, environment: Path) -> None:
    """Make an environment that sees the wheels, and after them the packages of this Python."""
    venv.create(environment, with_pip=False, clear=True, symlinks=True)
    paths = {"base": str(environment), "platbase": str(environment)}
    packages = Path(sysconfig.get_path("purelib", "venv", paths))
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as content:
            content.extractall(packages)
    # Not system_site_packages: where this Python is an environment's, those would not be its own.
    site_folders = [
        path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"}
    ]
    lines = [f"import site; site.addsitedir({path!r})" for path in site_folders]
    (packages / "machine.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    action, *folders = sys.argv[1:]
    if action == "collect":
        collect(Path(folders[0]))
    else:
        install(Path(folders[0]), Path(folders[1]))
