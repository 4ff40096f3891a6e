"""Reads where a version comes from: a metadata file and the digests of its data files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path

from pydantic import ValidationError

from kaiten.confinement import UnsafeFile, open_file
from kaiten.errors import ModelRejected
from kaiten.settings import strict_yaml
from lifecycle.card import Provenance


def read_provenance(
    metadata: Path | None, data_files: Mapping[str, Path], parent: str | None
) -> Provenance:
    """Return the provenance from a YAML file; data files and a parent override its fields.

    ``data_files`` maps ``training_data`` and ``reference_data`` to the files to digest.

    Raises:
        ModelRejected: A file cannot be read, or a field of the metadata is not valid.

    """
    overrides: dict[str, object] = {name: _digest(name, file) for name, file in data_files.items()}
    if parent is not None:
        overrides["parent"] = parent
    values = _read_metadata(metadata) if metadata is not None else {}
    try:
        return Provenance.model_validate({**values, **overrides})
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        remedy = "See kaiten register --help."
        raise ModelRejected(f"metadata.{field}", problem["msg"], remedy) from None


def _digest(field: str, file: Path) -> str:
    with _rejecting(field, file), open_file(file) as content:
        return file_digest(content, "sha256").hexdigest()


def _read_metadata(file: Path) -> dict[str, object]:
    with _rejecting("metadata", file), open_file(file) as content:
        text = content.read()
    try:
        return strict_yaml.load(text).values
    except strict_yaml.InvalidYaml as error:
        reason = f"{file}, {error.problems[0]}"
        raise ModelRejected("metadata", reason, "Correct it, and register again.") from None


@contextmanager
def _rejecting(field: str, file: Path) -> Iterator[None]:
    """Turn a file that cannot be read into ModelRejected."""
    try:
        yield
    except UnsafeFile as error:
        raise ModelRejected(field, f"{file} {error.reason}", error.remedy) from None
    except OSError as error:
        reason = f"{file} cannot be read: {error.strerror}"
        raise ModelRejected(field, reason, "Give the path of a file.") from None
