"""Whether a version meets here what it was registered with: another may answer otherwise."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from kaiten.errors import ModelRejected
from lifecycle.card import ModelCard

# The first two numbers of a release, which is all that is compared: "2.13.0+cpu" is 2.13.
_RELEASE = re.compile(r"(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class Difference:
    """A package that is not here in the version that a model was registered with.

    ``found`` is None where it is not installed; ``breaks`` whether that refuses to load.
    """

    package: str
    registered: str
    found: str | None
    breaks: bool

    def __str__(self) -> str:
        here = self.found or "not installed"
        return f"{self.package} was {self.registered} at registration, and is {here} here"


def installed_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Return the version of each package here, None for one that is not installed."""
    return {package: _version(package) for package in packages}


def check_opset(card: ModelCard, newest_opset: int | None) -> None:
    """Raise ModelRejected for a network in ONNX that is newer than the engine at hand.

    ``newest_opset`` is None for an engine that takes no ONNX.
    """
    opset = card.engine.opset if card.engine else None
    if opset is not None and newest_opset is not None and opset > newest_opset:
        raise ModelRejected(
            "engine.opset",
            f"of {card.tag} is {opset}, and ONNX Runtime knows up to {newest_opset} here",
            "Install the onnxruntime that the card names, or register and validate the model here.",
        )


def check(card: ModelCard, installed: Mapping[str, str | None]) -> list[Difference]:
    """Return what differs without harm; ModelRejected where another major version is here.

    Only the packages that ``installed`` tells of are looked at.
    """
    known = {**card.framework_versions, **(card.engine.versions if card.engine else {})}
    found = [*_differences(known, installed)]
    breaking = [each for each in found if each.breaks]
    if breaking:
        raise ModelRejected(
            "framework_versions",
            f"of {card.tag} do not fit this environment: {'; '.join(map(str, breaking))}",
            "Install what the card names, or register and validate the model here.",
        )
    return found


def _differences(
    registered: Mapping[str, str], installed: Mapping[str, str | None]
) -> Iterator[Difference]:
    for package, known in registered.items():
        if package not in installed:
            continue
        here = installed[package]
        before, now = _release(known), _release(here)
        if before != now:
            breaks = now is None or before is None or before[0] != now[0]
            yield Difference(package, known, here, breaks)


def _release(text: str | None) -> tuple[int, int] | None:
    match = _RELEASE.match(text or "")
    return (int(match[1]), int(match[2])) if match else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
