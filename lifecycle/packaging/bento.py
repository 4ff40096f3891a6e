"""A built bento: its folder, its labels, the digest of its files, and the packages that it pins."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.utils import parse_wheel_filename
from packaging.version import Version

from kaiten import model_tags
from kaiten.errors import BuildRefused, SetupError
from lifecycle.environment import installed_versions
from lifecycle.packaging.context import combine_digests, sha256_by_path
from lifecycle.packaging.origin import labelled_models
from lifecycle.store import ModelStore

SERVICE = "kaiten_service"
SBOM, PROVENANCE = "sbom.cdx.json", "provenance.json"
REQUIREMENTS = "env/python/requirements.txt"
_BENTO_YAML = "bento.yaml"
# Written by Python where a bento is served from its folder.
_CACHES = "__pycache__"


def bento_folder(tag: str, store: ModelStore) -> Path:
    """Return the folder of a bento in BentoML's home, which need not exist."""
    return _bentos(store) / Path(*model_tags.split(tag))


def find_bento(bento: str, store: ModelStore) -> Path:
    """Return the folder of a bento, given by its folder, its exact tag, or its name for the latest.

    Unlike `bentoml serve`, this accepts no prefix of a version.

    Raises:
        SetupError: There is no such bento.

    """
    folder = Path(bento)
    if (folder / _BENTO_YAML).is_file():
        return folder.resolve()
    name, version = model_tags.split(bento)
    if model_tags.is_name(name):
        latest = _bentos(store) / name / "latest"
        if version in {"", "latest"} and latest.is_file():
            version = latest.read_text(encoding="utf-8").strip()
        folder = _bentos(store) / name / version
        if model_tags.is_name(version) and (folder / _BENTO_YAML).is_file():
            return folder
    raise SetupError(
        f"There is no bento {bento}: it is neither a folder with a {_BENTO_YAML}, nor the tag of a "
        f"bento in {_bentos(store)}. `bentoml list` shows the tags."
    )


def _bentos(store: ModelStore) -> Path:
    return store.folder.parent / "bentos"


def check_bento(tag: str, store: ModelStore) -> str:
    """Return the digest (sha256:...) of a bento that kaiten build has made.

    Raises:
        BuildRefused: There is no such bento, or its files have changed.

    """
    folder = bento_folder(tag, store)
    if model_tags.split(tag)[0] != SERVICE or not is_locked(folder):
        raise BuildRefused(f"{tag} was not made by kaiten build. See kaiten build --help.")
    return check_files(folder)


def is_locked(folder: Path) -> bool:
    """Return whether kaiten build has made a bento; BentoML alone pins no files and packages."""
    return (folder / PROVENANCE).is_file()


def check_files(folder: Path) -> str:
    """Return the digest (sha256:...) of a bento that kaiten build has made.

    Raises:
        BuildRefused: Its files have changed, or cannot be read.

    """
    try:
        subject = json.loads((folder / PROVENANCE).read_bytes())["subject"][0]
        tag, expected = subject["name"], subject["digest"]["sha256"]
        digest = combine_digests(bento_files(folder))
    except (LookupError, TypeError, ValueError):
        raise _changed(str(folder), folder) from None
    except OSError as error:
        message = f"{error.filename} cannot be read: {error.strerror}. Let this user read it."
        raise BuildRefused(message) from None
    if digest != expected:
        raise _changed(tag, folder)
    return f"sha256:{digest}"


def _changed(bento: str, folder: Path) -> BuildRefused:
    return BuildRefused(
        f"{bento} was changed after it was built. First move {folder} out of the store. Then "
        "import an earlier `bentoml export` with `bentoml import FILE`, or run `kaiten build` "
        "again with the same options on the same commit, which makes the same bento. Until then, "
        "restart no server that runs from it."
    )


def read_tag(folder: Path) -> str:
    """Return the tag of a bento."""
    content = _read_bento_yaml(folder)
    return f"{content['name']}:{content['version']}"


def read_labels(folder: Path) -> dict[str, str]:
    """Return the labels of a bento."""
    labels: dict[str, str] = _read_bento_yaml(folder).get("labels") or {}
    return labels


def _read_bento_yaml(folder: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load((folder / _BENTO_YAML).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError):
        content = None
    if not isinstance(content, dict) or not {"name", "version"} <= content.keys():
        raise _changed(str(folder), folder)
    return content


def check_models(labels: Mapping[str, str], store: ModelStore) -> None:
    """Check that the store still holds the models that a bento was built with.

    An image copies them from the store by model tag alone.

    Raises:
        BuildRefused: A model has changed, or has lost its report.

    """
    for model_tag, digest, report in labelled_models(labels):
        model = store.get(model_tag)
        if f"sha256:{model.digest}" != digest:
            raise BuildRefused(
                f"{model_tag} was registered again since the bento was built. Build the bento "
                "again."
            )
        if not model.has_report(report.removeprefix("sha256:")):
            raise BuildRefused(
                f"{model_tag} has lost the report that the bento was built with. Restore "
                f"{model.folder / 'reports'} from a copy, or validate the version (kaiten validate "
                f"{model_tag} --data FILE) and build the bento again."
            )


def bento_files(bento: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a bento, by its path.

    Left out are the creation time in bento.yaml, the files that hold the digest of all others, and
    Python's caches, which an image compiles again.
    """
    content = _read_bento_yaml(bento)
    content.pop("creation_time", None)
    bento_yaml = yaml.safe_dump(content).encode()
    digests = {
        name: digest
        for name, digest in sha256_by_path(bento, without=(_BENTO_YAML, SBOM, PROVENANCE)).items()
        if _CACHES not in PurePath(name).parts
    }
    return digests | {_BENTO_YAML: hashlib.sha256(bento_yaml).hexdigest()}


def pinned_packages(folder: Path) -> dict[str, str | None]:
    """Return the version of each package that a bento installs here, None if a URL names it."""
    text = (folder / REQUIREMENTS).read_text(encoding="utf-8")
    # The hashes of a package follow it in indented lines.
    lines = (line.rstrip("\\ ") for line in text.splitlines() if re.match(r"[\w.]", line))
    return dict(_read_pins(lines))


def _read_pins(lines: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    for line in lines:
        if line.startswith("./"):
            name, version, *_ = parse_wheel_filename(PurePath(line).name)
            yield name, str(version)
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            yield requirement.name, next((pin.version for pin in requirement.specifier), None)


def compare_packages(pins: Mapping[str, str | None]) -> tuple[list[str], list[str]]:
    """Return the pinned packages that are not installed, and a line on each version mismatch."""
    missing: list[str] = []
    mismatches: list[str] = []
    for name, installed in installed_versions(pins).items():
        pin = pins[name]
        if installed is None:
            missing.append(name)
        # "2.13.0+cpu" is a build of 2.13.0.
        elif pin is not None and Version(installed).public != Version(pin).public:
            mismatches.append(f"{name} is pinned to {pin}, and is {installed} here")
    return missing, mismatches
