"""The model card: a version's description, with the checksum of each of its files."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from kaiten.confinement import ConfinedFolder, UnsafeFile
from kaiten.errors import ModelRejected, ModelUnusable, restore_remedy

CARD_FILE = "model_card.json"
# Holds reports, which are written after registration; the audit log has their digests.
REPORTS = "reports"
SIGNATURE_FILE = "model.sig"
# Written by BentoML's store.
BENTOML_FILE = "model.yaml"
_UNLISTED = {CARD_FILE, BENTOML_FILE, SIGNATURE_FILE}
_CHUNK_BYTES = 1 << 20
_REMOVE = "Remove it; the files of a version never change."


class EngineCard(BaseModel):
    """The engine that a version was registered for, as EngineFacts describes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    reason: str
    texts: int = 0
    max_difference: float | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    opset: int | None = Field(None, description="The version of the ONNX operators, if exported.")


class Provenance(BaseModel):
    """Where a version comes from, as stated at registration; None is unknown.

    Data are identified by the SHA-256 of their file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    parent: str | None = Field(None, description="The version that it follows.")
    trained_at: datetime | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    training_data: str | None = None
    reference_data: str | None = None
    # A full hash: a branch moves.
    git_commit: str | None = Field(None, pattern=r"^[0-9a-f]{40}$")
    source: str | None = Field(None, description="hf://OWNER/NAME@COMMIT of a hub's model.")
    licence: str | None = None
    limits: str | None = Field(None, description="The uses that it is not fit for.")


class ModelCard(BaseModel):
    """The description of one version. ``files`` maps relative paths to SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    task: str
    labels: tuple[str, ...]
    # JSON schemas of one input and one prediction.
    input_schema: dict[str, Any] = Field(default_factory=dict)
    output_schema: dict[str, Any] = Field(default_factory=dict)
    max_length: int = Field(description="The longest input, in tokens.", ge=1)
    architecture: str
    framework_versions: dict[str, str]
    # None in old cards, whose versions the store lists but does not load.
    engine: EngineCard | None = None
    notes: tuple[str, ...] = Field((), description="What registration changed, and caveats.")
    packages: tuple[str, ...] = Field(
        (), description="Packages that serving it on a CPU needs and not every model needs."
    )
    registered_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    provenance: Provenance = Provenance()
    files: dict[str, str]

    @property
    def tag(self) -> str:
        """The model tag, ``name:version``."""
        return f"{self.name}:{self.version}"

    @property
    def text(self) -> str:
        """The card as the file holds it."""
        return self.model_dump_json(indent=2) + "\n"

    @property
    def digest(self) -> str:
        """The SHA-256 of the file."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write the card into the folder of the version."""
        (folder / CARD_FILE).write_text(self.text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "ModelCard":
        """Read the card of a stored version.

        Raises:
            ModelUnusable: It is missing or cannot be parsed.
            ModelRejected: It is not readable for this user.

        """
        try:
            return cls.model_validate_json((folder / CARD_FILE).read_bytes())
        except PermissionError as error:
            raise _unreadable(CARD_FILE, f"in {folder}", error) from None
        except (OSError, ValueError):
            remedy = f"{restore_remedy(f'{folder.parent.name}:{folder.name}', folder)}."
            reason = f"is missing or corrupt in {folder}"
            raise ModelUnusable(CARD_FILE, reason, remedy) from None

    def verify(self, folder: Path) -> None:
        """Check that the files are those that were registered.

        An imported version may hold links, also in its reports; an image would include their
        targets.

        Raises:
            ModelUnusable: A registered file is missing or was changed; names it.
            ModelRejected: A file was added or cannot be read, or is a link; names it.

        """
        try:
            with ConfinedFolder(folder, hard_links=True) as files:
                files.names()
        except UnsafeFile as error:
            if error.name not in self.files.keys() | {CARD_FILE, BENTOML_FILE}:
                raise ModelRejected(error.name, error.reason, _REMOVE) from None
            remedy = f"Registration never writes one. {restore_remedy(self.tag, folder)}."
            raise ModelUnusable(error.name, error.reason, remedy) from None
        except OSError as error:
            raise _unreadable("folder", f"of {self.tag}", error) from None
        # A link to a folder is not a file, and its content would not be checked.
        paths = (path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
        for name in sorted(path.relative_to(folder).as_posix() for path in paths):
            is_listed = name in self.files or name in _UNLISTED or name.startswith(f"{REPORTS}/")
            # The files decide which engine is chosen.
            if not is_listed:
                reason = f"was added after {self.tag} was registered"
                raise ModelRejected(name, reason, _REMOVE)
        for name, digest in self.files.items():
            if not self._is_unchanged(folder / name, name, digest):
                raise ModelUnusable(
                    name,
                    f"is missing, or was changed after {self.tag} was registered",
                    f"{restore_remedy(self.tag, folder)}.",
                )

    def _is_unchanged(self, path: Path, name: str, digest: str) -> bool:
        try:
            return path.is_file() and sha256(path) == digest
        except PermissionError as error:
            raise _unreadable(name, f"of {self.tag}", error) from None


def _unreadable(name: str, place: str, error: OSError) -> ModelRejected:
    reason = f"{place} cannot be read: {error.strerror}"
    return ModelRejected(name, reason, "Let the server's user read it.")


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def card_differences(left: ModelCard, right: ModelCard) -> dict[str, tuple[str | None, str | None]]:
    """Return the fields in which two cards differ, by their dotted paths, with both values."""
    flat = [_flatten("", card.model_dump(mode="json")) for card in (left, right)]
    fields = dict.fromkeys([*flat[0], *flat[1]])
    values = {field: (flat[0].get(field), flat[1].get(field)) for field in fields}
    return {field: pair for field, pair in values.items() if pair[0] != pair[1]}


def _flatten(path: str, value: object) -> dict[str, str]:
    if isinstance(value, dict):
        flat: dict[str, str] = {}
        for key, nested in value.items():
            flat |= _flatten(f"{path}.{key}" if path else str(key), nested)
        return flat
    return {} if value is None else {path: value if isinstance(value, str) else json.dumps(value)}
