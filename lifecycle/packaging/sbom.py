"""The bill of materials of a bento, as CycloneDX in JSON: its packages and its models."""

import re
from collections.abc import Iterator, Sequence
from urllib.parse import unquote
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL
from packaging.utils import parse_wheel_filename

from lifecycle.store import StoredModel

_PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s\\;]+)")


def bill(bento: str, digest: str, lock: str, models: Sequence[StoredModel]) -> str:
    """Return the bill of a bento by its tag and SHA-256, with what its lock installs, in JSON.

    It holds no time, and a serial number that follows from the digest.
    """
    name, _, version = bento.partition(":")
    root = Component(
        type=ComponentType.APPLICATION, name=name, version=version, bom_ref=bento,
        hashes=[_sha256(digest)],
    )  # fmt: skip
    bom = Bom(
        serial_number=uuid5(NAMESPACE_URL, digest),
        metadata=BomMetaData(component=root),
        components=[*_packages(lock), *map(_model, models)],
    )
    # The schema lets it be left out, the library's types do not.
    bom.metadata.timestamp = None  # type: ignore[assignment]
    bom.register_dependency(root, bom.components)
    outputter = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6)
    return outputter.output_as_string(indent=2) + "\n"


def _packages(lock: str) -> Iterator[Component]:
    """Yield what a lock installs; the hashes of its files stand in the lock."""
    for line in lock.splitlines():
        if line and not line.startswith(" "):
            name, version = _pin(line)
            purl = PackageURL("pypi", name=name, version=version)
            yield Component(
                type=ComponentType.LIBRARY, name=name, version=version, purl=purl, bom_ref=str(purl)
            )  # fmt: skip


def _pin(line: str) -> tuple[str, str]:
    """Return the package and the version of a requirement: a pin, or a wheel by its address."""
    pin = _PIN.match(line)
    if pin is not None:
        return pin["name"], pin["version"]
    address = line.removesuffix("\\").split()[-1]
    name, version, *_ = parse_wheel_filename(unquote(address.rpartition("/")[2]))
    return name, str(version)


def _model(model: StoredModel) -> Component:
    card = model.card
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL, name=card.name, version=card.version,
        bom_ref=f"model:{card.tag}", hashes=[_sha256(model.digest)],
    )  # fmt: skip


def _sha256(digest: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=digest)
