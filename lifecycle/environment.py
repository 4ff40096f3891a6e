"""Compares the installed packages with those a version was registered with."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from kaiten.errors import ModelRejected
from lifecycle.card import ModelCard

# The first two numbers of a release, which are compared: "2.13.0+cpu" is 2.13.
_RELEASE = re.compile(r"(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class VersionDifference:
    """A package whose installed version differs from the registered one.

    ``installed`` is None if the package is missing; ``breaking`` differences prevent loading.
    """

    package: str
    registered: str
    installed: str | None
    breaking: bool

    def __str__(self) -> str:
        installed = self.installed or "not installed"
        return f"{self.package} was {self.registered} at registration, and is {installed} here"


def installed_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Return the installed version of each package, None for one that is not installed."""
    return {package: _installed_version(package) for package in packages}


def check_opset(card: ModelCard, newest_opset: int | None) -> None:
    """Check that the engine can run the operators of an ONNX network.

    ``newest_opset`` is None for an engine that does not run ONNX.

    Raises:
        ModelRejected: The network is newer than the engine.

    """
    opset = card.engine.opset if card.engine else None
    if opset is not None and newest_opset is not None and opset > newest_opset:
        raise ModelRejected(
            "engine.opset",
            f"of {card.tag} is {opset}, and ONNX Runtime here supports up to {newest_opset}",
            "Install the onnxruntime that the card names, or register and validate the model here.",
        )


def compare_environment(
    card: ModelCard, installed: Mapping[str, str | None]
) -> list[VersionDifference]:
    """Return the differences that do no harm, among the packages in ``installed``.

    Raises:
        ModelRejected: A package is missing, or has another major version.

    """
    registered = {**card.framework_versions, **(card.engine.versions if card.engine else {})}
    differences = [*_differences(registered, installed)]
    breaking = [difference for difference in differences if difference.breaking]
    if breaking:
        raise ModelRejected(
            "framework_versions",
            f"of {card.tag} do not fit this environment: {'; '.join(map(str, breaking))}",
            "Install what the card names, or register and validate the model here.",
        )
    return differences


def _differences(
    registered: Mapping[str, str], installed: Mapping[str, str | None]
) -> Iterator[VersionDifference]:
    for package, registered_version in registered.items():
        if package not in installed:
            continue
        before, now = _release(registered_version), _release(installed[package])
        if before != now:
            breaking = now is None or before is None or before[0] != now[0]
            yield VersionDifference(package, registered_version, installed[package], breaking)


def _release(text: str | None) -> tuple[int, int] | None:
    match = _RELEASE.match(text or "")
    return (int(match[1]), int(match[2])) if match else None


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
