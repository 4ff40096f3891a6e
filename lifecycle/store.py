"""BentoML's model store, as far as Kaiten uses it: versions with a card."""

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import bentoml
import semver
from pydantic import TypeAdapter

from kaiten import model_tags
from kaiten.errors import ModelLost, ModelNotFound, ModelRejected, restore
from kaiten.files import replace
from kaiten.settings.models import SignatureSettings
from lifecycle.audit_log import Action, AuditLog, AuditLogEntry
from lifecycle.baseline import REPORT_FILE, folder_of, reference_of
from lifecycle.card import BENTOML_FILE, CARD_FILE, REPORTS, SIGNATURE_FILE, ModelCard, sha256
from lifecycle.signatures import sign, verify

PROMOTIONS_FILE = "promotions.json"
_ENTRIES = TypeAdapter(list[AuditLogEntry])


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A version in the store: its card, and the folder with its files."""

    card: ModelCard
    folder: Path

    @property
    def digest(self) -> str:
        """The SHA-256 of its card, which holds those of all its files."""
        return sha256(self.folder / CARD_FILE)

    def reports(self, digest: str) -> Path:
        """Return the folder of the report with this SHA-256, be it there or not."""
        return folder_of(self.folder / REPORTS, digest)

    def has_report(self, digest: str) -> bool:
        """Return whether the report with this SHA-256 is there, as it was written."""
        file = self.reports(digest) / REPORT_FILE
        return file.is_file() and sha256(file) == digest

    @property
    def reference(self) -> Path | None:
        """The folder of the report that drift is measured from, None where there is none."""
        return reference_of(self.folder / REPORTS, self.digest)

    @property
    def promotions(self) -> list[AuditLogEntry]:
        """The entries by which these bytes came to each stage last, which go where they go.

        A bento holds versions without their trail.
        """
        try:
            content = (self.folder / REPORTS / PROMOTIONS_FILE).read_bytes()
            entries = _ENTRIES.validate_json(content)
        except (OSError, ValueError):
            return []
        digest = self.digest
        return [
            each for each in entries if each.digest == each.compute_digest() and each.card == digest
        ]

    def add_promotion(self, entry: AuditLogEntry) -> None:
        """Keep the entry by which it came to a stage, instead of an earlier one of that stage."""
        (self.folder / REPORTS).mkdir(exist_ok=True)
        kept = [each for each in self.promotions if each.stage != entry.stage]
        content = _ENTRIES.dump_json([*kept, entry]).decode()
        replace(self.folder / REPORTS / PROMOTIONS_FILE, content + "\n")

    def add_report(self, report: str, others: Mapping[str, bytes]) -> str:
        """Keep a report, in JSON, and what goes with it, by file name; return its SHA-256.

        The folder appears with all that is in it.
        """
        content = report.encode()
        digest = hashlib.sha256(content).hexdigest()
        target = self.reports(digest)
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            return digest
        made = Path(mkdtemp(dir=target.parent, prefix="."))
        try:
            for name, each in {REPORT_FILE: content, **others}.items():
                (made / name).write_bytes(each)
            made.rename(target)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        return digest


class ModelStore:
    """The versions under BENTOML_HOME (in a container: those of the bento).

    What it takes in it signs, and what it gives out it verifies, as ``signatures`` says.
    """

    def __init__(self, signatures: SignatureSettings | None = None) -> None:
        self._signatures = signatures or SignatureSettings()

    def __iter__(self) -> Iterator[StoredModel]:
        """Yield every version with a card, by name, then newest first; others are not ours."""
        folders = [each for each in self._folders().values() if (each / CARD_FILE).is_file()]
        cards = [(ModelCard.read(each), each) for each in folders]
        cards.sort(key=lambda pair: semver.Version.parse(pair[0].version), reverse=True)
        for card, folder in sorted(cards, key=lambda pair: pair[0].name):
            yield StoredModel(card, folder)

    def __contains__(self, tag: str) -> bool:
        return tag in self._folders()

    def get(self, tag: str) -> StoredModel:
        """Return the version ``name:version``, its files checked against its card.

        ModelNotFound where there is none, ModelRejected where a file is not as registered.
        """
        folders = self._folders()
        if tag not in folders:
            ours = sorted(each for each in folders if (folders[each] / CARD_FILE).is_file())
            self._check_lost(tag)
            raise ModelNotFound(tag, ours, self.folder)
        folder = folders[tag]
        card = ModelCard.read(folder)
        if card.tag != tag:
            raise ModelRejected(
                CARD_FILE,
                f"is that of {card.tag}, not of {tag}",
                f"{restore(tag)}.",
            )
        if card.engine is None:
            raise ModelRejected(
                CARD_FILE,
                f"of {tag} names no engine: an older Kaiten registered it",
                f"Delete it (bentoml models delete {tag}) and register it again.",
            )
        model = StoredModel(card, folder)
        self._check_card(model)
        card.verify(folder)
        verify(folder, tag, self._signatures)
        return model

    def sign(self, tag: str, *, force: bool = False) -> None:
        """Sign a version that was registered here; ModelRejected where its bytes are not those.

        A signature that is not valid is replaced only with ``force``.
        """
        model = ModelStore().get(tag)
        actions = {(e.action, e.card) for e in self.audit_log(model.card.name).entries()}
        if (Action.REGISTERED, model.digest) not in actions:
            raise ModelRejected(
                CARD_FILE,
                f"of {tag} is in no history here, so nothing says where its files come from",
                "Sign a version where it was registered.",
            )
        if not force and (model.folder / SIGNATURE_FILE).is_file():
            verify(model.folder, tag, self._signatures)
        sign(model.folder, self._signatures)
        verify(model.folder, tag, self._signatures)

    def audit_log(self, name: str) -> AuditLog:
        """Return the audit log of a model, which is stored beside the models."""
        return AuditLog(self.folder.parent / "kaiten", name)

    def _check_lost(self, tag: str) -> None:
        """Raise ModelLost for a version that is not there, and that the history knows."""
        name, version = model_tags.split(tag)
        entries = self.audit_log(name).entries()
        if any(entry.version == version for entry in entries):
            folder = self.folder / name / version
            raise ModelLost(tag, folder / BENTOML_FILE if folder.is_dir() else folder)

    def _check_card(self, model: StoredModel) -> None:
        """Raise ModelRejected for a card that is not the one that was registered.

        A store that came without a trail, such as a bento's, has nothing to compare with.
        """
        card = model.card
        entries = self.audit_log(card.name).entries()
        registered = [
            entry
            for entry in entries
            if entry.action is Action.REGISTERED and entry.version == card.version
        ]
        if registered and registered[-1].card == model.digest:
            return
        if registered:
            reason = f"of {card.tag} was changed since the version was registered"
        elif entries:
            reason = f"of {card.tag} is of a version that the history does not know"
        else:
            return
        raise ModelRejected(CARD_FILE, reason, f"{restore(card.tag)}.")

    def add(self, card: ModelCard, sources: Mapping[str, Path]) -> StoredModel:
        """Copy the files (relative path to source) and the card into the store.

        On any failure, a copy that does not match its checksum included, nothing is left behind.
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
                sign(folder, self._signatures)
                # Nothing is taken in that would not load.
                verify(folder, card.tag, self._signatures)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        # Verified above; a load verifies the files again.
        return StoredModel(card, self._folders()[card.tag])

    def is_unfinished(self, tag: str) -> bool:
        """Return whether a registration that was killed has left a part of a version.

        One that anything has happened to since is whole, or was spoilt later.
        """
        name, version = model_tags.split(tag)
        folder = self.folder / name / version
        actions = {e.action for e in self.audit_log(name).entries() if e.version == version}
        if not folder.is_dir() or actions - {Action.REGISTERED}:
            return False
        try:
            ModelCard.read(folder).verify(folder)
        except ModelRejected:
            return True
        return not (folder / BENTOML_FILE).is_file()

    def remove_unfinished(self, tag: str) -> None:
        """Remove what a registration that was killed has left of a version; all else stays."""
        if self.is_unfinished(tag):
            name, version = model_tags.split(tag)
            shutil.rmtree(self.folder / name / version)

    @property
    def folder(self) -> Path:
        """Where the versions lie."""
        return Path(_container().model_store.get()._path).resolve()  # noqa: SLF001

    @classmethod
    def at(cls, folder: Path, signatures: SignatureSettings | None = None) -> "ModelStore":
        """Make this folder the store of this process, as BentoML does where a bento has its own."""
        from bentoml._internal.models import ModelStore as BentoMLStore  # noqa: PLC0415

        _container().model_store.set(BentoMLStore(folder))
        return cls(signatures)

    def _folders(self) -> dict[str, Path]:
        """Return the folder of each tag.

        BentoML's own list fails at all of them where one was not written to its end, and its get
        would take a prefix of a version.
        """
        files = self.folder.glob(f"*/*/{BENTOML_FILE}")
        folders = sorted(file.parent for file in files if not file.parent.is_symlink())
        return {f"{folder.parent.name}:{folder.name}": folder for folder in folders}


def _container() -> Any:  # noqa: ANN401  its providers are typed for its own plugin
    # Importing it reads BENTOML_CONFIG: no command should fail with that file that needs no store.
    return import_module("bentoml._internal.configuration.containers").BentoMLContainer
