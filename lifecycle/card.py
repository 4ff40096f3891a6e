"""The model card: what a version is, with the checksum of every file that makes it."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from kaiten.confinement import ConfinedFolder, UnsafeFile
from kaiten.errors import ModelRejected, restore

CARD_FILE = "model_card.json"
# What is found out about a version after it was registered; the history holds the digests.
REPORTS = "reports"
SIGNATURE_FILE = "model.sig"
# What BentoML's store adds.
BENTOML_FILE = "model.yaml"
_UNLISTED = {CARD_FILE, BENTOML_FILE, SIGNATURE_FILE}
_CHUNK_BYTES = 1 << 20


class EngineCard(BaseModel):
    """Which engine a version was registered for, and why; the differences are between logits.

    ``max_difference`` is the largest absolute one from torch's over ``texts`` texts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    reason: str
    texts: int = 0
    max_difference: float | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    opset: int | None = Field(None, description="The version of ONNX's operators, if exported.")


class Provenance(BaseModel):
    """Where a version comes from, as whoever registers it tells; what they do not tell is None.

    Data are named by the SHA-256 of their file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    parent: str | None = Field(None, description="The version that it was made from.")
    trained_at: datetime | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    training_data: str | None = None
    reference_data: str | None = None
    # Whole: a branch's name would say something else tomorrow.
    git_commit: str | None = Field(None, pattern=r"^[0-9a-f]{40}$")
    source: str | None = Field(None, description="hf://OWNER/NAME@COMMIT, of a model from a hub.")
    licence: str | None = None
    limits: str | None = Field(None, description="What it is not to be used for.")


class ModelCard(BaseModel):
    """What is known of one version. ``files`` maps a relative path to its SHA-256."""

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
    # None in cards of before there were engines; the store lists such a version, and refuses it.
    engine: EngineCard | None = None
    notes: tuple[str, ...] = Field((), description="What registration changed, and what to mind.")
    packages: tuple[str, ...] = Field(
        (), description="What serving it on a CPU needs besides what every model needs."
    )
    registered_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    provenance: Provenance = Provenance()
    files: dict[str, str]

    @property
    def tag(self) -> str:
        """The name and version as they are written everywhere: ``name:version``."""
        return f"{self.name}:{self.version}"

    @property
    def text(self) -> str:
        """The card as it is written."""
        return self.model_dump_json(indent=2) + "\n"

    @property
    def digest(self) -> str:
        """The SHA-256 of the card as it is written."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write the card beside the files that it describes."""
        (folder / CARD_FILE).write_text(self.text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "ModelCard":
        """Read the card of a stored version; ModelRejected where it has none or a broken one."""
        try:
            return cls.model_validate_json((folder / CARD_FILE).read_bytes())
        except (OSError, ValueError):
            remedy = f"{restore(f'{folder.parent.name}:{folder.name}')}."
            reason = f"is missing or broken in {folder}"
            raise ModelRejected(CARD_FILE, reason, remedy) from None

    def verify(self, folder: Path) -> None:
        """Raise ModelRejected, naming the file, unless the files are as they were registered.

        A version that was imported may hold links, in its reports as well, and an image would hold
        what they name.
        """
        try:
            with ConfinedFolder(folder, hard_links=True) as files:
                files.names()
        except UnsafeFile as error:
            remedy = "No version that was registered holds one: do not serve it."
            raise ModelRejected(error.name, error.reason, remedy) from None
        except OSError as error:
            reason = f"of {self.tag} cannot be read: {error.strerror}"
            raise ModelRejected("folder", reason, "Let the server's user read it.") from None
        # A link to a folder is no file, and nothing in it would be looked at.
        present = (each for each in folder.rglob("*") if each.is_file() or each.is_symlink())
        for name in sorted(each.relative_to(folder).as_posix() for each in present):
            # An engine is chosen by what lies here.
            known = name in self.files or name in _UNLISTED or name.startswith(f"{REPORTS}/")
            if not known:
                raise ModelRejected(
                    name,
                    f"was added since {self.tag} was registered",
                    "Remove it; what a version holds never changes.",
                )
        for name, digest in self.files.items():
            path = folder / name
            if not path.is_file() or sha256(path) != digest:
                raise ModelRejected(
                    name,
                    f"is missing or changed since {self.tag} was registered",
                    f"{restore(self.tag)}.",
                )


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
