"""BentoML's model store, as far as Kaiten uses it: versions with a card."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import bentoml
import semver

from kaiten.errors import ModelNotFound, ModelRejected
from lifecycle.card import CARD_FILE, ModelCard


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A version in the store: its card, and the folder with its files."""

    card: ModelCard
    folder: Path


class ModelStore:
    """The versions under BENTOML_HOME (in a container: those of the bento)."""

    def __iter__(self) -> Iterator[StoredModel]:
        """Yield every version with a card, by name, then newest first; others are not ours."""
        folders = [Path(model.path) for model in bentoml.models.list()]
        cards = [(ModelCard.read(each), each) for each in folders if (each / CARD_FILE).is_file()]
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
            raise ModelNotFound(tag, ours)
        folder = folders[tag]
        card = ModelCard.read(folder)
        if card.tag != tag:
            raise ModelRejected(
                CARD_FILE,
                f"is that of {card.tag}, not of {tag}",
                f"Delete it (bentoml models delete {tag}) and register it again.",
            )
        if card.engine is None:
            raise ModelRejected(
                CARD_FILE,
                f"of {tag} names no engine: an older Kaiten registered it",
                f"Delete it (bentoml models delete {tag}) and register it again.",
            )
        card.verify(folder)
        return StoredModel(card, folder)

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
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        # Verified above; a load verifies the files again.
        return StoredModel(card, self._folders()[card.tag])

    @property
    def folder(self) -> Path:
        """Where the versions lie."""
        return Path(_container().model_store.get()._path).resolve()  # noqa: SLF001

    @classmethod
    def at(cls, folder: Path) -> "ModelStore":
        """Make this folder the store of this process, as BentoML does where a bento has its own."""
        from bentoml._internal.models import ModelStore as BentoMLStore  # noqa: PLC0415

        _container().model_store.set(BentoMLStore(folder))
        return cls()

    def _folders(self) -> dict[str, Path]:
        """Return the folder of each tag. bentoml.models.get would take a prefix of a version."""
        return {str(model.tag): Path(model.path) for model in bentoml.models.list()}


def _container() -> Any:  # noqa: ANN401  its providers are typed for its own plugin
    # Importing it reads BENTOML_CONFIG: no command should fail with that file that needs no store.
    return import_module("bentoml._internal.configuration.containers").BentoMLContainer
