"""Registering a model: what is refused, and why, before anything is copied."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Protocol

import semver

from kaiten import tags
from kaiten.errors import ModelRejected
from lifecycle.card import EngineCard, ModelCard, sha256
from lifecycle.store import ModelStore, StoredModel

_KEPT_SUFFIXES = {".json", ".safetensors", ".txt", ".model", ".md", ".jinja"}
_KEPT_NAMES = {"LICENSE", "NOTICE"}
# What a trainer leaves beside the weights; none of it is needed, and most of it is pickle.
_TRAINER_LEFTOVERS = re.compile(
    r"training_args\.bin|trainer_state\.json|optimizer\.(pt|bin)|scheduler\.(pt|bin)|scaler\.pt|rng_state.*\.pth"
)
_UNSAFE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack", ".joblib"}
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")


class EngineFacts(Protocol):
    """The engine that the model is to be served by; EngineCard says what each field is."""

    @property
    def name(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def texts(self) -> int: ...
    @property
    def max_difference(self) -> float | None: ...
    @property
    def versions(self) -> Mapping[str, str]: ...


class ModelFacts(Protocol):
    """What loading a model once tells of it; ``max_length`` in tokens."""

    @property
    def labels(self) -> Sequence[str]: ...
    @property
    def max_length(self) -> int: ...
    @property
    def architecture(self) -> str: ...
    @property
    def framework_versions(self) -> Mapping[str, str]: ...
    @property
    def engine(self) -> EngineFacts: ...


class Inspector(Protocol):
    """Loads a folder as one task's model, tries it, and tells what it is.

    What serving needs besides the folder's own files is written into ``made``, an empty folder.
    It raises ModelRejected for a folder that holds no model of the task.
    """

    def __call__(self, folder: Path, made: Path) -> ModelFacts: ...


def register(
    folder: Path, tag: str, task: str, *, store: ModelStore, inspect: Inspector
) -> StoredModel:
    """Check a local model folder and add it to the store as ``name:version``.

    ModelRejected names the field and the remedy, and nothing is left behind.
    """
    name, version = tags.split(tag)
    check_name(name)
    check_version(version)
    if tag in store:
        raise ModelRejected("version", f"{tag} exists already", "A version never changes: raise it")
    files = select_files(folder)
    with TemporaryDirectory(prefix="kaiten-") as made:
        facts = inspect(folder, Path(made))
        files |= _files_in(Path(made))
        return store.add(_card(name, version, task, facts, files), files)


def _card(
    name: str, version: str, task: str, facts: ModelFacts, files: Mapping[str, Path]
) -> ModelCard:
    return ModelCard(
        name=name,
        version=version,
        task=task,
        labels=tuple(facts.labels),
        max_length=facts.max_length,
        architecture=facts.architecture,
        framework_versions=dict(facts.framework_versions),
        engine=EngineCard.model_validate(facts.engine, from_attributes=True),
        files={path: sha256(source) for path, source in files.items()},
    )


def _files_in(folder: Path) -> dict[str, Path]:
    """Return every file by its relative path."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in found}


def check_name(name: str) -> None:
    """Refuse a name that BentoML's tags do not allow."""
    if not tags.is_name(name):
        raise ModelRejected(
            "name",
            f"{name!r} is not a model name",
            "Use up to 63 of a-z, 0-9, '-', '_' and '.', with a letter or digit at both ends.",
        )


def check_version(version: str) -> None:
    """Refuse what is not SemVer 2.0.0, and of SemVer what BentoML's tags do not allow."""
    if not semver.Version.is_valid(version):
        raise ModelRejected(
            "version", f"{version!r} is not a SemVer version", "Write it as 1.2.3 or 1.2.3-rc.1."
        )
    if not tags.is_name(version):
        raise ModelRejected(
            "version",
            f"{version!r} has capitals, build metadata or a '-' at its end, or is over "
            f"{tags.NAME_LIMIT} characters",
            "BentoML's tags allow none of these: write it as 1.2.3 or 1.2.3-rc.1.",
        )


def select_files(folder: Path) -> dict[str, Path]:
    """Return the files that make the model, by relative path; refuse a folder that is not safe."""
    if not folder.is_dir():
        raise ModelRejected("folder", f"{folder} is not a folder", "Give the model's local folder.")
    found = {
        name: path for name, path in _files_in(folder).items() if not _passed_over(PurePath(name))
    }
    _check_safe(found)
    _check_complete(found)
    return {
        name: path
        for name, path in found.items()
        if path.suffix in _KEPT_SUFFIXES or path.name in _KEPT_NAMES
    }


def _passed_over(path: PurePath) -> bool:
    """Return whether it is hidden, a checkpoint, a run's log or a trainer's state."""
    return (
        any(part.startswith((".", "checkpoint-")) or part == "runs" for part in path.parts)
        or _TRAINER_LEFTOVERS.fullmatch(path.name) is not None
    )


def _check_safe(found: Mapping[str, Path]) -> None:
    for name, path in found.items():
        if path.suffix in _UNSAFE_SUFFIXES:
            raise ModelRejected(
                name,
                "is not safetensors; such files can run code when loaded",
                "Save the model with save_pretrained(..., safe_serialization=True) and remove it.",
            )
        if path.suffix == ".py":
            raise ModelRejected(name, "is code", "Remote code is never run; remove it.")


def _check_complete(found: Mapping[str, Path]) -> None:
    if "config.json" not in found:
        raise ModelRejected("config.json", "is missing", "Save the model with save_pretrained.")
    try:
        config = json.loads(found["config.json"].read_bytes())
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise ModelRejected("config.json", "is not a JSON object", "Save the model again.")
    if "auto_map" in config:
        raise ModelRejected(
            "config.json", "asks for remote code (auto_map)", "Use an architecture of transformers."
        )
    if not any(name in found for name in _TOKENIZER_FILES):
        raise ModelRejected(
            "tokenizer",
            "is missing",
            "Save it beside the model: tokenizer.save_pretrained(FOLDER).",
        )
    if not any(name.endswith(".safetensors") for name in found):
        raise ModelRejected(
            "weights",
            "are not there as safetensors",
            "Save the model with save_pretrained(..., safe_serialization=True).",
        )
