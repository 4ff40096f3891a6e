"""The versions of the API, and how a request chooses one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gateway.routes import RouteMatch, RouteTable
from kaiten.errors import ApiVersionMismatch, UnknownApiVersion

HEADER = "API-Version"
_RAW_HEADER = HEADER.lower().encode()
# The path on which the header chooses a version; without it, the default.
NEGOTIATED_PATH = "/api/predict"
VERSIONS = ("1", "2")
DEFAULT, NEWEST = "1", "2"
DOCUMENTS: Mapping[str, str] = {version: f"/api/v{version}/openapi.json" for version in VERSIONS}
# As callers may write them.
_VERSION_OF_VALUE: Mapping[str, str] = {
    value: version for version in VERSIONS for value in (version, f"v{version}")
}


def names_of(version: str) -> list[str]:
    """Return how callers may write a version."""
    return [value for value, named in _VERSION_OF_VALUE.items() if named == version]


def negotiate(
    table: RouteTable, match: RouteMatch, headers: Sequence[tuple[bytes, bytes]]
) -> RouteMatch:
    """Return the match of the version that a request names, or that its path belongs to.

    Raises:
        UnknownApiVersion: The path has no such version.
        ApiVersionMismatch: The header is sent twice, or contradicts the path.

    """
    spec = match.spec
    versions = table.negotiated.get(spec.path)
    if spec.api_version is None and versions is None:
        return match
    values = [value.decode("latin-1") for name, value in headers if name == _RAW_HEADER]
    version = _requested_version(spec.api_version, values)
    if versions is None:
        return match
    if version not in versions:
        raise UnknownApiVersion([*versions])
    return replace(match, spec=versions[version])


def _requested_version(path_version: str | None, values: Sequence[str]) -> str:
    if len(values) > 1:
        raise ApiVersionMismatch(f"is sent {len(values)} times; send it once")
    version = _VERSION_OF_VALUE.get(values[0]) if values else path_version or DEFAULT
    if version is None:
        raise UnknownApiVersion(VERSIONS)
    if path_version is not None and version != path_version:
        raise ApiVersionMismatch(
            f"is {version}, and the path is of version {path_version}; leave one out"
        )
    return version
