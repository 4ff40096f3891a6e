"""Wheels of nothing, for resolvers to find."""

import zipfile
from collections.abc import Sequence
from pathlib import Path


def wheel(
    folder: Path, name: str, version: str, needs: Sequence[str] = (), tags: str = "py3-none-any"
) -> Path:
    """Write a wheel that needs others and holds no code."""
    path = folder / f"{name}-{version}-{tags}.whl"
    about = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in needs)]
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", "\n".join(["Metadata-Version: 2.1", *about, ""]))
        archive.writestr(
            f"{info}/WHEEL",
            f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tags}\n",
        )
        archive.writestr(f"{info}/RECORD", "")
    return path
