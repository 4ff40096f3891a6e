"""Registers a model from a folder, a hub or a registry with the settings in force."""

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from kaiten.settings.loader import load_settings
from lifecycle.audit_log import current_operator
from lifecycle.card import Provenance
from lifecycle.registration import Progress, Submission, register_model
from lifecycle.sources import fetch_model
from lifecycle.store import ModelStore, StoredModel
from monitors.logging.setup import add_audit_file
from runners.tasks import find_inspection


@dataclass(frozen=True, slots=True)
class RegistrationRequest:
    """A model to register; ``source`` is written as ``fetch_model`` accepts it.

    ``version`` and ``max_length`` are those of a Submission.
    """

    source: str
    name: str
    version: str | None
    task: str
    provenance: Provenance = field(default_factory=Provenance)
    max_length: int | None = None


def register_source(
    request: RegistrationRequest, progress: Progress = lambda _: None
) -> StoredModel:
    """Fetch a model, check it and add it to the store.

    Raises:
        ModelRejected: The model cannot be fetched or registered; the store is unchanged.

    """
    settings, inspect = load_settings(), find_inspection(request.task).inspect
    add_audit_file(settings.audit_folder)
    with TemporaryDirectory(prefix="kaiten-") as downloads:
        fetched = fetch_model(request.source, Path(downloads))
        provenance = request.provenance.model_copy(update={"source": fetched.source})
        return register_model(
            Submission(
                fetched.folder,
                request.name,
                request.version,
                request.task,
                provenance,
                request.max_length,
            ),
            current_operator(),
            settings.versioning,
            store=ModelStore(settings.signatures),
            inspect=inspect,
            progress=progress,
        )
