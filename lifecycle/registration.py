"""Registering a model: what is refused, and why, before anything is copied."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import semver

from kaiten import model_tags
from kaiten.confinement import list_names
from kaiten.errors import ModelRejected
from kaiten.settings.models import VersioningSettings
from lifecycle.audit_log import (
    Action,
    AuditLogEntry,
    AuditLogEvent,
    AuditLogTransaction,
    Stage,
    serving_entry,
)
from lifecycle.card import EngineCard, ModelCard, Provenance, sha256
from lifecycle.model_files import ORIGINAL_README, copy
from lifecycle.semver_policy import bumped, changes, check_bump, least_bump
from lifecycle.store import ModelStore, StoredModel

# The version of a model that has no parent, where none is named.
FIRST = "1.0.0"
# Told what is being done, a line at a time.
Progress = Callable[[str], None]
# Of the files that are left out, so many are named.
_NAMED = 10


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
    @property
    def notes(self) -> Sequence[str]: ...
    @property
    def packages(self) -> Sequence[str]: ...


class Inspector(Protocol):
    """Loads a folder as one task's model, tries it, and tells what it is.

    What serving needs besides the folder's own files is written into ``output``, an empty folder.
    Inputs of over ``max_length`` tokens are to be cut, if it is given. It raises ModelRejected for
    a folder that holds no model of the task.
    """

    def __call__(
        self, folder: Path, output: Path, *, max_length: int | None, progress: Progress
    ) -> ModelFacts: ...


@dataclass(frozen=True, slots=True)
class Submission:
    """A local folder that is to become a version; without a ``version``, the least that may be.

    ``max_length`` is the longest input to serve, in tokens; without it, the model's own maximum.
    """

    folder: Path
    name: str
    version: str | None
    task: str
    provenance: Provenance = field(default_factory=Provenance)
    max_length: int | None = None


def register_model(
    submission: Submission,
    who: str,
    rules: VersioningSettings,
    *,
    store: ModelStore,
    inspect: Inspector,
    progress: Progress = lambda _: None,
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
        files, left_out = copy(submission.folder, Path(copied))
        if left_out:
            progress(f"Left out, as no part of the model: {list_names(left_out, _NAMED)}")
        facts = inspect(
            Path(copied), Path(made), max_length=submission.max_length, progress=progress
        )
        progress("Adding the version to the store")
        files |= _files_in(Path(made))
        digests = {path: sha256(source) for path, source in files.items()}
        # Two who register at once are told apart here.
        with store.audit_log(submission.name).transaction() as transaction:
            if not transaction.entries:
                _note_what_is_there(submission.name, store, transaction)
            parent = _parent(submission, transaction.entries, store)
            card = _versioned(_card(submission, facts, files), submission, parent, rules, store)
            store.remove_unfinished(card.tag)
            _check_free(card.tag, store)
            readme = _write_readme(card, files, Path(made))
            digests |= {path: sha256(source) for path, source in readme.items()}
            card = card.model_copy(update={"files": digests})
            event = AuditLogEvent(
                action=Action.REGISTERED, version=card.version, who=who, card=card.digest
            )
            transaction.add(event)
            # Before the files: an entry without a version does no harm, and a version without an
            # entry could be changed unnoticed.
            transaction.save()
            return store.add(card, files | readme)


def _note_what_is_there(name: str, store: ModelStore, transaction: AuditLogTransaction) -> None:
    """Note the versions of before there was a trail, which would not load beside one."""
    for model in store:
        if model.card.name == name:
            version, digest = model.card.version, model.digest
            transaction.add(
                AuditLogEvent(action=Action.REGISTERED, version=version, who="found", card=digest)
            )


def _card(submission: Submission, facts: ModelFacts, files: Mapping[str, Path]) -> ModelCard:
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
        notes=tuple(facts.notes),
        packages=tuple(facts.packages),
        provenance=_with_licence(submission.provenance, files),
        files={},
    )


def _with_licence(provenance: Provenance, files: Mapping[str, Path]) -> Provenance:
    """Return the provenance; a licence that is not given is the one in the model's README.md."""
    from lifecycle.readme import README_FILE, declared_licence  # noqa: PLC0415  half a second

    readme = files.get(README_FILE)
    if provenance.licence is not None or readme is None:
        return provenance
    licence = declared_licence(readme.read_text(encoding="utf-8", errors="replace"))
    return provenance.model_copy(update={"licence": licence})


def _write_readme(card: ModelCard, files: Mapping[str, Path], made: Path) -> dict[str, Path]:
    """Write the card's README; one that the model came with stays beside it."""
    from lifecycle.readme import README_FILE, render  # noqa: PLC0415  takes half a second

    own = files.get(README_FILE)
    text = own.read_text(encoding="utf-8", errors="replace") if own else ""
    (made / README_FILE).write_text(render(card, text), encoding="utf-8")
    return {README_FILE: made / README_FILE} | ({ORIGINAL_README: own} if own else {})


def _parent(
    submission: Submission, entries: Sequence[AuditLogEntry], store: ModelStore
) -> ModelCard | None:
    """Return the card of the version that a new one follows; None for the first of its name.

    That is the one that was named, else the one in production, else the newest before it.
    """
    named = submission.provenance.parent
    if named is not None:
        if model_tags.split(named)[0] != submission.name:
            reason = f"{named} is another model than {submission.name}"
            raise ModelRejected("parent", reason, "Name a version of the same model.")
        return store.get(named).card
    current = serving_entry(entries, Stage.PRODUCTION)
    wanted = submission.version and semver.Version.parse(submission.version)
    cards = [model.card for model in store if model.card.name == submission.name]
    older = [card for card in cards if not wanted or semver.Version.parse(card.version) < wanted]
    in_production = [card for card in older if current and card.version == current.version]
    return next(iter([*in_production, *older]), None)


def _versioned(
    card: ModelCard,
    submission: Submission,
    parent: ModelCard | None,
    rules: VersioningSettings,
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
    if not model_tags.is_name(name):
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
    if not model_tags.is_name(version):
        raise ModelRejected(
            "version",
            f"{version!r} has capitals, build metadata or a '-' at its end, or is over "
            f"{model_tags.NAME_LIMIT} characters",
            "BentoML's tags allow none of these: write it as 1.2.3 or 1.2.3-rc.1.",
        )
