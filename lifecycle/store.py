"""The model store: the versions with a card in BentoML's store."""

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import bentoml
import semver
from pydantic import TypeAdapter

from kaiten import model_tags
from kaiten.errors import ModelLost, ModelNotFound, ModelRejected, ModelUnusable, restore_remedy
from kaiten.files import replace_file
from kaiten.settings.models import SignatureSettings
from lifecycle.audit_log import Action, AuditLog, AuditLogEntry
from lifecycle.baseline import REPORT_FILE, baseline_folder, report_folder
from lifecycle.card import BENTOML_FILE, CARD_FILE, REPORTS, SIGNATURE_FILE, ModelCard, sha256
from lifecycle.signatures import sign_version, verify_version

PROMOTIONS_FILE = "promotions.json"
_ENTRIES = TypeAdapter(list[AuditLogEntry])


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A version in the store: its card and its folder."""

    card: ModelCard
    folder: Path

    @property
    def digest(self) -> str:
        """The SHA-256 of its card, which lists those of all its files."""
        return sha256(self.folder / CARD_FILE)

    def reports(self, digest: str) -> Path:
        """Return the folder of the report with this SHA-256, which need not exist."""
        return report_folder(self.folder / REPORTS, digest)

    def has_report(self, digest: str) -> bool:
        """Return whether the report with this SHA-256 exists, unchanged."""
        file = self.reports(digest) / REPORT_FILE
        return file.is_file() and sha256(file) == digest

    @property
    def baseline(self) -> Path | None:
        """The folder of the report that drift is measured against, None if there is none."""
        return baseline_folder(self.folder / REPORTS, self.digest)

    @property
    def promotions(self) -> list[AuditLogEntry]:
        """The audit log's entries of the last promotion of these bytes to each stage.

        They are stored in the version, because a bento holds versions without their audit log.
        """
        try:
            content = (self.folder / REPORTS / PROMOTIONS_FILE).read_bytes()
            entries = _ENTRIES.validate_json(content)
        except (OSError, ValueError):
            return []
        digest = self.digest
        return [
            entry
            for entry in entries
            if entry.digest == entry.compute_digest() and entry.card == digest
        ]

    def add_promotion(self, entry: AuditLogEntry) -> None:
        """Store the entry of a promotion, instead of an earlier one to the same stage."""
        (self.folder / REPORTS).mkdir(exist_ok=True)
        others = [promotion for promotion in self.promotions if promotion.stage != entry.stage]
        content = _ENTRIES.dump_json([*others, entry]).decode()
        replace_file(self.folder / REPORTS / PROMOTIONS_FILE, content + "\n")

    def add_report(self, report: str, files: Mapping[str, bytes]) -> str:
        """Store a report (JSON) together with other files, by name; return its SHA-256.

        The folder appears at once, complete.
        """
        content = report.encode()
        digest = hashlib.sha256(content).hexdigest()
        target = self.reports(digest)
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            return digest
        staging = Path(mkdtemp(dir=target.parent, prefix="."))
        try:
            for name, data in {REPORT_FILE: content, **files}.items():
                (staging / name).write_bytes(data)
            staging.rename(target)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        return digest


class ModelStore:
    """The versions under BENTOML_HOME (in a container: those of the bento).

    The store signs each version that is added and verifies each that is loaded, as ``signatures``
    requires.
    """

    def __init__(self, signatures: SignatureSettings | None = None) -> None:
        self._signatures = signatures or SignatureSettings()

    def __iter__(self) -> Iterator[StoredModel]:
        """Yield every version with a card, by name, the newest first; BentoML may hold others."""
        folders = [path for path in self._folders().values() if (path / CARD_FILE).is_file()]
        cards = [(ModelCard.read(folder), folder) for folder in folders]
        cards.sort(key=lambda pair: semver.Version.parse(pair[0].version), reverse=True)
        for card, folder in sorted(cards, key=lambda pair: pair[0].name):
            yield StoredModel(card, folder)

    def __contains__(self, tag: str) -> bool:
        return tag in self._folders()

    def tags(self) -> list[str]:
        """Return the tag of each version with a card, which need not be readable."""
        folders = self._folders()
        return sorted(tag for tag in folders if (folders[tag] / CARD_FILE).is_file())

    def versions(self, name: str) -> list[StoredModel]:
        """Return the versions of a model, the newest first, without those of unreadable cards."""
        folders = self._folders()
        models: list[StoredModel] = []
        for tag in self.tags():
            if model_tags.split(tag)[0] == name:
                with suppress(ModelRejected):
                    models.append(StoredModel(ModelCard.read(folders[tag]), folders[tag]))
        models = [model for model in models if model.card.name == name]
        return sorted(models, key=lambda m: semver.Version.parse(m.card.version), reverse=True)

    def get(self, tag: str) -> StoredModel:
        """Return the version ``name:version``, with its files checked against its card.

        Raises:
            ModelNotFound: There is no such version.
            ModelLost: It was registered, and is missing.
            ModelUnusable: A file differs from the registered one, or the engine is unknown.
            ModelRejected: A file was added, or the signature is not valid.

        """
        folders = self._folders()
        if tag not in folders:
            if self._entries(tag):
                raise self.lost(tag)
            raise ModelNotFound(tag, self.tags(), self.folder)
        folder = folders[tag]
        card = ModelCard.read(folder)
        if card.tag != tag:
            raise ModelUnusable(
                CARD_FILE,
                f"belongs to {card.tag}, not to {tag}",
                f"{restore_remedy(tag, folder)}.",
            )
        if card.engine is None:
            raise ModelUnusable(
                CARD_FILE,
                f"of {tag} names no engine, because an older Kaiten registered it",
                "Register the model under a new version, and serve that.",
            )
        model = StoredModel(card, folder)
        self._check_card(model)
        card.verify(folder)
        verify_version(folder, tag, self._signatures)
        return model

    def sign(self, tag: str, *, force: bool = False) -> None:
        """Sign a version that was registered here.

        A signature that is not valid is replaced only with ``force``.

        Raises:
            ModelRejected: The version was not registered here, or its files have changed.

        """
        model = ModelStore().get(tag)
        entries = self.audit_log(model.card.name).entries()
        if (Action.REGISTERED, model.digest) not in {(e.action, e.card) for e in entries}:
            raise ModelRejected(
                CARD_FILE,
                f"of {tag} is in no audit log here, so the origin of its files is unknown",
                "Sign the version on the machine where it was registered.",
            )
        if not force and (model.folder / SIGNATURE_FILE).is_file():
            verify_version(model.folder, tag, self._signatures)
        sign_version(model.folder, self._signatures)
        verify_version(model.folder, tag, self._signatures)

    def audit_log(self, name: str) -> AuditLog:
        """Return the audit log of a model, which is stored beside the models."""
        return AuditLog(self.folder.parent / "kaiten", name)

    def lost(self, tag: str) -> ModelLost:
        """Return the error for a missing version that the audit log contains."""
        name, version = model_tags.split(tag)
        folder = self.folder / name / version
        return ModelLost(tag, folder / BENTOML_FILE if folder.is_dir() else folder, folder)

    def _entries(self, tag: str) -> list[AuditLogEntry]:
        """Return the entries of the audit log on a version."""
        name, version = model_tags.split(tag)
        return [entry for entry in self.audit_log(name).entries() if entry.version == version]

    def _check_card(self, model: StoredModel) -> None:
        """Raise ModelRejected for a card that differs from the registered one.

        A store without an audit log, such as a bento's, has nothing to compare with.
        """
        card = model.card
        audit_log = self.audit_log(card.name)
        entries = audit_log.entries()
        registered = [
            entry
            for entry in entries
            if entry.action is Action.REGISTERED and entry.version == card.version
        ]
        if registered and registered[-1].card != model.digest:
            reason = f"of {card.tag} was changed after the version was registered"
            raise ModelUnusable(CARD_FILE, reason, f"{restore_remedy(card.tag, model.folder)}.")
        if entries and not registered:
            raise ModelRejected(
                CARD_FILE,
                f"of {card.tag} belongs to a version that is not in the audit log",
                f"Register the model here under a new version, or restore {audit_log.path} and "
                "the .head file beside it together, from the machine where the version was "
                "registered.",
            )

    def add(self, card: ModelCard, sources: Mapping[str, Path]) -> StoredModel:
        """Copy the files (relative path to source) and the card into the store.

        On any failure, for example a copy that does not match its checksum, nothing remains.
        """
        labels = {"task": card.task, "made-by": "kaiten"}
        with bentoml.models.create(card.tag, labels=labels) as model:
            folder = Path(model.path)
            try:
                for name, source in sources.items():
                    target = folder / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, target)
                card.write(folder)
                card.verify(folder)
                sign_version(folder, self._signatures)
                # The store accepts only what it would load again.
                verify_version(folder, card.tag, self._signatures)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        return StoredModel(card, self._folders()[card.tag])

    def is_available(self, tag: str) -> bool:
        """Return whether a model can be registered as this version.

        Production rejects other files under the number of a version that was promoted and is lost.
        """
        if tag in self:
            return self.is_unfinished(tag)
        return not any(entry.stage for entry in self._entries(tag))

    def is_unfinished(self, tag: str) -> bool:
        """Return whether a registration that was killed has left a part of a version.

        A version that was validated or promoted was complete, even if it was damaged later.
        """
        name, version = model_tags.split(tag)
        folder = self.folder / name / version
        actions = {entry.action for entry in self._entries(tag)}
        if not folder.is_dir() or actions - {Action.REGISTERED}:
            return False
        try:
            ModelCard.read(folder).verify(folder)
        except ModelUnusable:
            return True
        except ModelRejected:
            # A file was added, or cannot be read.
            pass
        return not (folder / BENTOML_FILE).is_file()

    def remove_unfinished(self, tag: str) -> None:
        """Remove the part of a version that a registration that was killed has left, if any."""
        if self.is_unfinished(tag):
            name, version = model_tags.split(tag)
            shutil.rmtree(self.folder / name / version)

    @property
    def folder(self) -> Path:
        """The folder of all versions."""
        return Path(_container().model_store.get()._path).resolve()  # noqa: SLF001

    @classmethod
    def at(cls, folder: Path, signatures: SignatureSettings | None = None) -> "ModelStore":
        """Make this folder the store of this process, as BentoML does for a bento with models."""
        from bentoml._internal.models import ModelStore as BentoMLStore  # noqa: PLC0415

        _container().model_store.set(BentoMLStore(folder))
        return cls(signatures)

    def _folders(self) -> dict[str, Path]:
        """Return the folder of each model tag.

        BentoML's own list fails if one version was written in part, and its get accepts a prefix
        of a version.
        """
        files = self.folder.glob(f"*/*/{BENTOML_FILE}")
        folders = sorted(file.parent for file in files if not file.parent.is_symlink())
        return {f"{folder.parent.name}:{folder.name}": folder for folder in folders}


def _container() -> Any:  # noqa: ANN401  its providers are typed for its own plugin
    # Imported late: it reads BENTOML_CONFIG, on which a command without the store must not fail.
    return import_module("bentoml._internal.configuration.containers").BentoMLContainer
