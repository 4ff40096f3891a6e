"""The software bill of materials of a bento, as CycloneDX in JSON: its packages and its models."""

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


def make_sbom(bento: str, digest: str, lock: str, models: Sequence[StoredModel]) -> str:
    """Return the SBOM of a bento with this tag and SHA-256, whose lock file is ``lock``.

    It has no time, and its serial number is derived from the digest.
    """
    name, _, version = bento.partition(":")
    root = Component(
        type=ComponentType.APPLICATION, name=name, version=version, bom_ref=bento,
        hashes=[_sha256(digest)],
    )  # fmt: skip
    bom = Bom(
        serial_number=uuid5(NAMESPACE_URL, digest),
        metadata=BomMetaData(component=root),
        components=[*_package_components(lock), *map(_model_component, models)],
    )
    # Optional in the schema, but not in the library's types.
    bom.metadata.timestamp = None  # type: ignore[assignment]
    bom.register_dependency(root, bom.components)
    outputter = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6)
    return outputter.output_as_string(indent=2) + "\n"


def _package_components(lock: str) -> Iterator[Component]:
    """Yield the packages of a lock file, which itself has the hashes of their files."""
    for line in lock.splitlines():
        if line and not line.startswith(" "):
            name, version = _parse_requirement(line)
            purl = PackageURL("pypi", name=name, version=version)
            yield Component(
                type=ComponentType.LIBRARY, name=name, version=version, purl=purl, bom_ref=str(purl)
            )  # fmt: skip


def _parse_requirement(line: str) -> tuple[str, str]:
    """Return the package and version of a pin, or of a wheel's URL or path."""
    pin = _PIN.match(line)
    if pin is not None:
        return pin["name"], pin["version"]
    url = line.removesuffix("\\").split()[-1]
    name, version, *_ = parse_wheel_filename(unquote(url.rpartition("/")[2]))
    return name, str(version)


def _model_component(model: StoredModel) -> Component:
    card = model.card
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL, name=card.name, version=card.version,
        bom_ref=f"model:{card.tag}", hashes=[_sha256(model.digest)],
    )  # fmt: skip


def _sha256(digest: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=digest)
