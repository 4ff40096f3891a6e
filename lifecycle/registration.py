"""Registering a model: what is refused, and why, before anything is copied."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import semver

from kaiten import tags
from kaiten.confinement import ConfinedFolder, UnsafeFile, printable
from kaiten.errors import ModelRejected
from kaiten.sections import Versioning
from kaiten.strict_yaml import DuplicateKey, reject_duplicate_keys
from lifecycle.card import (
    CARD_FILE,
    REPORTS,
    EngineCard,
    ModelCard,
    Provenance,
    sha256,
)
from lifecycle.history import Action, Draft, Entry, Event, Stage, serving
from lifecycle.store import ModelStore, StoredModel
from lifecycle.versions import bumped, changes, check_bump, least_bump

# The version of a model that has no parent, where none is named.
FIRST = "1.0.0"
_OWN_README = "README.original.md"
# Of a version in the store, whose files may become another version.
_OWN = {CARD_FILE, REPORTS, _OWN_README}
_KEPT_SUFFIXES = {".json", ".safetensors", ".txt", ".model", ".md", ".jinja"}
_KEPT_NAMES = {"LICENSE", "NOTICE"}
# What a trainer leaves beside the weights; none of it is needed, and most of it is pickle.
_TRAINER_LEFTOVERS = re.compile(
    r"training_args\.bin|trainer_state\.json|optimizer\.(pt|bin)|scheduler\.(pt|bin)|scaler\.pt|rng_state.*\.pth"
)
_UNSAFE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack", ".joblib"}
_INDEX_SUFFIX = ".safetensors.index.json"
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
    @property
    def opset(self) -> int | None: ...


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
    @property
    def input_schema(self) -> Mapping[str, Any]: ...
    @property
    def output_schema(self) -> Mapping[str, Any]: ...


class Inspector(Protocol):
    """Loads a folder as one task's model, tries it, and tells what it is.

    What serving needs besides the folder's own files is written into ``made``, an empty folder.
    It raises ModelRejected for a folder that holds no model of the task.
    """

    def __call__(self, folder: Path, made: Path) -> ModelFacts: ...


@dataclass(frozen=True, slots=True)
class Submission:
    """A local folder that is to become a version; without a ``version``, the least that may be."""

    folder: Path
    name: str
    version: str | None
    task: str
    provenance: Provenance = field(default_factory=Provenance)


def register(
    submission: Submission, who: str, rules: Versioning, *, store: ModelStore, inspect: Inspector
) -> StoredModel:
    """Check a local model folder and add it to the store.

    ModelRejected names the field and the remedy, and nothing is left behind.
    """
    check_name(submission.name)
    if submission.version is not None:
        check_version(submission.version)
        _check_free(f"{submission.name}:{submission.version}", store)
    with (
        TemporaryDirectory(prefix="kaiten-") as copied,
        TemporaryDirectory(prefix="kaiten-") as made,
    ):
        # What is inspected, hashed and stored is one copy, which the folder's maker cannot change.
        files = _copy_files(submission.folder, Path(copied))
        facts = inspect(Path(copied), Path(made))
        files |= _files_in(Path(made))
        digests = {path: sha256(source) for path, source in files.items()}
        # Two who register at once are told apart here.
        with store.history(submission.name).changing() as draft:
            if not draft.entries:
                _note_what_is_there(submission.name, store, draft)
            parent = _parent(submission, draft.entries, store)
            card = _versioned(_card(submission, facts), submission, parent, rules, store)
            store.remove_unfinished(card.tag)
            _check_free(card.tag, store)
            readme = _write_readme(card, files, Path(made))
            digests |= {path: sha256(source) for path, source in readme.items()}
            card = card.model_copy(update={"files": digests})
            event = Event(action=Action.REGISTERED, version=card.version, who=who, card=card.digest)
            draft.add(event)
            # Before the files: an entry without a version does no harm, and a version without an
            # entry could be changed unnoticed.
            draft.save()
            return store.add(card, files | readme)


def _note_what_is_there(name: str, store: ModelStore, draft: Draft) -> None:
    """Note the versions of before there was a trail, which would not load beside one."""
    for model in store:
        if model.card.name == name:
            version, digest = model.card.version, model.digest
            draft.add(Event(action=Action.REGISTERED, version=version, who="found", card=digest))


def _card(submission: Submission, facts: ModelFacts) -> ModelCard:
    return ModelCard(
        name=submission.name,
        # Where it is left open, what follows from the parent takes its place.
        version=submission.version or FIRST,
        task=submission.task,
        labels=tuple(facts.labels),
        input_schema=dict(facts.input_schema),
        output_schema=dict(facts.output_schema),
        max_length=facts.max_length,
        architecture=facts.architecture,
        framework_versions=dict(facts.framework_versions),
        engine=EngineCard.model_validate(facts.engine, from_attributes=True),
        provenance=submission.provenance,
        files={},
    )


def _write_readme(card: ModelCard, files: Mapping[str, Path], made: Path) -> dict[str, Path]:
    """Write the card's README; one that the model came with stays beside it."""
    from lifecycle.readme import README_FILE, render  # noqa: PLC0415  takes half a second

    own = files.get(README_FILE)
    text = own.read_text(encoding="utf-8", errors="replace") if own else ""
    (made / README_FILE).write_text(render(card, text), encoding="utf-8")
    return {README_FILE: made / README_FILE} | ({_OWN_README: own} if own else {})


def _parent(
    submission: Submission, entries: Sequence[Entry], store: ModelStore
) -> ModelCard | None:
    """Return the card of the version that a new one follows; None for the first of its name.

    That is the one that was named, else the one in production, else the newest before it.
    """
    named = submission.provenance.parent
    if named is not None:
        if tags.split(named)[0] != submission.name:
            reason = f"{named} is another model than {submission.name}"
            raise ModelRejected("parent", reason, "Name a version of the same model.")
        return store.get(named).card
    current = serving(entries, Stage.PRODUCTION)
    wanted = submission.version and semver.Version.parse(submission.version)
    cards = [model.card for model in store if model.card.name == submission.name]
    older = [card for card in cards if not wanted or semver.Version.parse(card.version) < wanted]
    in_production = [card for card in older if current and card.version == current.version]
    return next(iter([*in_production, *older]), None)


def _versioned(
    card: ModelCard,
    submission: Submission,
    parent: ModelCard | None,
    rules: Versioning,
    store: ModelStore,
) -> ModelCard:
    """Return the card with its parent, and the version that it may have."""
    if parent is None:
        return card
    if submission.version is None:
        least = least_bump(changes(parent, card, rules))
        version = bumped(parent.version, least)
        # Another version that never reached production may have it.
        while f"{card.name}:{version}" in store:
            version = bumped(version, least)
        card = card.model_copy(update={"version": version})
    else:
        check_bump(parent, card, rules)
    provenance = card.provenance.model_copy(update={"parent": parent.tag})
    return card.model_copy(update={"provenance": provenance})


def _check_free(tag: str, store: ModelStore) -> None:
    if tag in store and not store.is_unfinished(tag):
        raise ModelRejected("version", f"{tag} exists already", "A version never changes: raise it")


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
    with _refusing(folder), ConfinedFolder(_checked(folder)) as source:
        return {name: folder / name for name in _select(source)}


def _copy_files(folder: Path, target: Path) -> dict[str, Path]:
    """Copy the files that make the model, and return the copies by relative path."""
    with _refusing(folder), ConfinedFolder(_checked(folder)) as source:
        copies = {name: target / name for name in _select(source)}
        for name, copy in copies.items():
            source.copy(name, copy)
    _check_content(copies)
    return copies


@contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    """Turn what cannot be read safely into ModelRejected."""
    try:
        yield
    except UnsafeFile as error:
        raise ModelRejected(error.name, error.reason, error.remedy) from None
    except OSError as error:
        name = Path(error.filename or "").name or str(folder)
        reason = f"cannot be copied: {error.strerror or error}"
        raise ModelRejected(printable(name), reason, "Check its mode and the free space.") from None


def _checked(folder: Path) -> Path:
    if not folder.is_dir():
        raise ModelRejected("folder", f"{folder} is not a folder", "Give the model's local folder.")
    return folder


def _select(source: ConfinedFolder) -> list[str]:
    """Return the names of the files that make the model."""
    names = source.names(ignored=lambda name: _passed_over(PurePath(name)))
    _check_safe(names)
    _check_complete(names)
    paths = {name: PurePath(name) for name in names}
    return [
        name
        for name, path in paths.items()
        if path.suffix in _KEPT_SUFFIXES or path.name in _KEPT_NAMES
    ]


def _passed_over(path: PurePath) -> bool:
    """Return whether it is hidden, a checkpoint, a run's log, a trainer's state, or our own."""
    return (
        path.parts[0] in _OWN
        or any(part.startswith((".", "checkpoint-")) or part == "runs" for part in path.parts)
        or _TRAINER_LEFTOVERS.fullmatch(path.name) is not None
    )


def _check_safe(names: Sequence[str]) -> None:
    for name in names:
        suffix = PurePath(name).suffix
        if suffix in _UNSAFE_SUFFIXES:
            raise ModelRejected(
                name,
                "is not safetensors; such files can run code when loaded",
                "Save the model with save_pretrained(..., safe_serialization=True) and remove it.",
            )
        if suffix == ".py":
            raise ModelRejected(name, "is code", "Remote code is never run; remove it.")
    if "adapter_config.json" in names:
        # transformers would load what it names, from wherever that lies.
        raise ModelRejected(
            "adapter_config.json",
            "is of an adapter, which is no whole model",
            "Merge it (peft's merge_and_unload), and save the model again.",
        )


def _check_complete(names: Sequence[str]) -> None:
    if "config.json" not in names:
        raise ModelRejected("config.json", "is missing", "Save the model with save_pretrained.")
    if not any(name in names for name in _TOKENIZER_FILES):
        raise ModelRejected(
            "tokenizer",
            "is missing",
            "Save it beside the model: tokenizer.save_pretrained(FOLDER).",
        )
    if not any(name.endswith(".safetensors") for name in names):
        raise ModelRejected(
            "weights",
            "are not there as safetensors",
            "Save the model with save_pretrained(..., safe_serialization=True).",
        )


def _check_content(files: Mapping[str, Path]) -> None:
    """Refuse configuration that asks for code, or for files outside the folder."""
    config = _read_object("config.json", files["config.json"])
    if "auto_map" in config:
        raise ModelRejected(
            "config.json", "asks for remote code (auto_map)", "Use an architecture of transformers."
        )
    named = {"config.json": [config.get("transformers_weights")]}
    for name in files:
        if name.endswith(_INDEX_SUFFIX):
            shards = _read_object(name, files[name]).get("weight_map")
            named[name] = [*shards.values()] if isinstance(shards, dict) else []
    for name, weights in named.items():
        for file in weights:
            if file is not None and f"{PurePath(name).parent / str(file)}" not in files:
                reason = f"names the weights {printable(str(file))}, which are not in the folder"
                raise ModelRejected(name, reason, "Save the model again, whole.")


def _read_object(name: str, file: Path) -> dict[str, Any]:
    """Read a JSON object in which no key stands twice: of two, one would be lost."""
    try:
        content = json.loads(file.read_bytes(), object_pairs_hook=reject_duplicate_keys)
    except DuplicateKey as error:
        reason = f"has the key {error.key} twice"
        raise ModelRejected(name, reason, "Keep the one that is meant.") from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ModelRejected(name, "is not a JSON object", "Save the model again.")
    return content
