"""Registers a model: checks a folder, and adds it to the store as a version."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import semver

from kaiten import model_tags
from kaiten.confinement import list_names
from kaiten.errors import ModelRejected
from kaiten.model_facts import ModelFacts
from kaiten.settings.models import Bump, VersioningSettings
from lifecycle.audit_log import (
    Action,
    AuditLogEntry,
    AuditLogEvent,
    AuditLogTransaction,
    Stage,
    serving_entry,
)
from lifecycle.card import EngineCard, ModelCard, Provenance, sha256
from lifecycle.model_files import ORIGINAL_README, copy_model_files
from lifecycle.semver_policy import bump_version, check_bump, find_changes, required_bump
from lifecycle.store import ModelStore, StoredModel

# The version of a model without a parent, if none is given.
FIRST_VERSION = "1.0.0"
# Called with a line about the current step.
Progress = Callable[[str], None]
_MAX_LISTED = 10
_HIGHER_VERSION = "A version never changes: register the model under a higher version."


class Inspector(Protocol):
    """Loads a folder as a model of one task, tries it, and returns its properties.

    Additional files that serving needs are written into ``output``, an empty folder. Inputs of over
    ``max_length`` tokens are to be truncated, if it is given. Raises ModelRejected for a folder
    that holds no model of the task.
    """

    def __call__(
        self, folder: Path, output: Path, *, max_length: int | None, progress: Progress
    ) -> ModelFacts: ...


@dataclass(frozen=True, slots=True)
class Submission:
    """A local folder to register as a version.

    ``version`` None means the lowest that the SemVer policy allows. ``max_length`` is the longest
    input to serve, in tokens; None means the model's own maximum.
    """

    folder: Path
    name: str
    version: str | None
    task: str
    provenance: Provenance = field(default_factory=Provenance)
    max_length: int | None = None


def register_model(
    submission: Submission,
    operator: str,
    rules: VersioningSettings,
    *,
    store: ModelStore,
    inspect: Inspector,
    progress: Progress = lambda _: None,
) -> StoredModel:
    """Check a local model folder and add it to the store.

    Raises:
        ModelRejected: The model cannot be registered; the store is unchanged.

    """
    check_name(submission.name)
    if submission.version is not None:
        check_version(submission.version)
        check_unused(f"{submission.name}:{submission.version}", store)
    with TemporaryDirectory(prefix="kaiten-") as temporary:
        card, files = _inspect_copy(submission, Path(temporary), inspect, progress)
        progress("Adding the version to the store")
        # The lock also separates two registrations at once.
        with store.audit_log(submission.name).transaction() as transaction:
            if not transaction.entries:
                _record_existing_versions(submission.name, store, transaction)
            parent = _find_parent(submission, transaction.entries, store)
            card = _assign_version(card, submission.version, parent, rules, store)
            store.remove_unfinished(card.tag)
            check_unused(card.tag, store)
            readme = _write_readme(card, files, Path(temporary))
            digests = {path: sha256(source) for path, source in readme.items()}
            card = card.model_copy(update={"files": card.files | digests})
            transaction.add(_registration_event(card.version, card.digest, operator))
            # Before the files: an entry without a version is harmless, but a version without an
            # entry could be changed unnoticed.
            transaction.save()
            return store.add(card, files | readme)


def _inspect_copy(
    submission: Submission, folder: Path, inspect: Inspector, progress: Progress
) -> tuple[ModelCard, dict[str, Path]]:
    """Copy a model into a temporary folder and inspect it; return its card and its files.

    One copy, which no other program can change, is inspected, hashed and stored.
    """
    model, output = folder / "model", folder / "output"
    model.mkdir()
    output.mkdir()
    files, excluded = copy_model_files(submission.folder, model)
    if excluded:
        progress(f"Left out, because not part of the model: {list_names(excluded, _MAX_LISTED)}")
    facts = inspect(model, output, max_length=submission.max_length, progress=progress)
    files |= _files_in(output)
    card = _card(submission, facts, files)
    digests = {path: sha256(source) for path, source in files.items()}
    return card.model_copy(update={"files": digests}), files


def _record_existing_versions(
    name: str, store: ModelStore, transaction: AuditLogTransaction
) -> None:
    """Record the versions of a store without an audit log, so that they still load with one."""
    for model in store.versions(name):
        transaction.add(_registration_event(model.card.version, model.digest, "found"))


def _registration_event(version: str, card: str, operator: str) -> AuditLogEvent:
    return AuditLogEvent(action=Action.REGISTERED, version=version, who=operator, card=card)


def _card(submission: Submission, facts: ModelFacts, files: Mapping[str, Path]) -> ModelCard:
    return ModelCard(
        name=submission.name,
        # Replaced by the version that follows from the parent, if none is given.
        version=submission.version or FIRST_VERSION,
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
    """Return the provenance, with the licence in the model's README.md unless one is given."""
    from lifecycle.readme import README_FILE, declared_licence  # noqa: PLC0415  half a second

    readme = files.get(README_FILE)
    if provenance.licence is not None or readme is None:
        return provenance
    licence = declared_licence(readme.read_text(encoding="utf-8", errors="replace"))
    return provenance.model_copy(update={"licence": licence})


def _write_readme(card: ModelCard, files: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Write the card's README; the model's own README is stored beside it."""
    from lifecycle.readme import README_FILE, render_readme  # noqa: PLC0415  takes half a second

    original = files.get(README_FILE)
    text = original.read_text(encoding="utf-8", errors="replace") if original else ""
    (folder / README_FILE).write_text(render_readme(card, text), encoding="utf-8")
    readme = {README_FILE: folder / README_FILE}
    return readme | ({ORIGINAL_README: original} if original else {})


def _find_parent(
    submission: Submission, entries: Sequence[AuditLogEntry], store: ModelStore
) -> ModelCard | None:
    """Return the card of the version that a new one follows, None for the first of its name.

    That is the one that was named, or the one in production, or the newest before it.
    """
    parent_tag = submission.provenance.parent
    if parent_tag is not None:
        if model_tags.split(parent_tag)[0] != submission.name:
            reason = f"{parent_tag} is a version of another model than {submission.name}"
            raise ModelRejected("parent", reason, "Name a version of the same model.")
        return store.get(parent_tag).card
    current = serving_entry(entries, Stage.PRODUCTION)
    version = submission.version and semver.Version.parse(submission.version)
    cards = [model.card for model in store.versions(submission.name)]
    older = [card for card in cards if not version or semver.Version.parse(card.version) < version]
    in_production = [card for card in older if current and card.version == current.version]
    return next(iter([*in_production, *older]), None)


def _assign_version(
    card: ModelCard,
    version: str | None,
    parent: ModelCard | None,
    rules: VersioningSettings,
    store: ModelStore,
) -> ModelCard:
    """Return the card with its parent and a version that the SemVer policy allows."""
    if parent is None:
        # The changes from versions that are lost are unknown.
        version = version or _next_available(card.name, FIRST_VERSION, "major", store)
        return card.model_copy(update={"version": version})
    if version is None:
        bump = required_bump(find_changes(parent, card, rules))
        version = _next_available(card.name, bump_version(parent.version, bump), bump, store)
        card = card.model_copy(update={"version": version})
    else:
        check_bump(parent, card, rules)
    provenance = card.provenance.model_copy(update={"parent": parent.tag})
    return card.model_copy(update={"provenance": provenance})


def _next_available(name: str, version: str, bump: Bump, store: ModelStore) -> str:
    """Return the version, or the first bump of it that is available."""
    while not store.is_available(f"{name}:{version}"):
        version = bump_version(version, bump)
    return version


def check_unused(model_tag: str, store: ModelStore, remedy: str = _HIGHER_VERSION) -> None:
    """Check that a model can be registered as this version.

    Raises:
        ModelRejected: The version exists; ``remedy`` is what to do then.
        ModelLost: It was promoted, and its files are lost.

    """
    if store.is_available(model_tag):
        return
    if model_tag in store:
        raise ModelRejected("version", f"{model_tag} exists already", remedy)
    raise store.lost(model_tag)


def _files_in(folder: Path) -> dict[str, Path]:
    """Return every file by its relative path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in files}


def check_name(name: str) -> None:
    """Raise ModelRejected for a name that BentoML's tags do not allow."""
    if not model_tags.is_name(name):
        raise ModelRejected(
            "name",
            f"{name!r} is not a model name",
            "Use up to 63 of a-z, 0-9, '-', '_' and '.', with a letter or digit at both ends.",
        )


def check_version(version: str) -> None:
    """Raise ModelRejected for a version that is not SemVer, or that BentoML's tags do not allow."""
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
