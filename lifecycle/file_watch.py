"""Whether the files of the versions that serve are still those that were loaded.

A worker computes from memory and goes on without them; the next worker could not start.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from lifecycle.card import BENTOML_FILE, CARD_FILE, SIGNATURE_FILE, sha256
from lifecycle.store import StoredModel

logger = structlog.get_logger(__name__)
INTERVAL_S = 15.0
_MAX_TOLD = 5
# Size, times and inode: what changes where a file is written, replaced or restored.
_Status = tuple[int, int, int, int]


@dataclass
class _File:
    """A file as it was loaded: its SHA-256, and the status that it was last seen intact with."""

    path: Path
    digest: str | None
    intact: _Status | None
    damaged: _Status | None = None

    def is_intact(self) -> bool:
        status = _status(self.path)
        if status is None or status in (self.intact, self.damaged):
            return status is not None and status == self.intact
        # Touched or restored, maybe: a file is read again only where its status has changed.
        if _digest(self.path) == self.digest:
            self.intact = status
            return True
        self.damaged = status
        return False


@dataclass
class _Version:
    """The files of one version, by their names in its folder."""

    files: dict[str, _File]
    damaged: list[str] = field(default_factory=list)


class FileWatch:
    """A thread that looks at the files of served versions, from start to close.

    ``references`` is the folder of each one's reference report, by tag, if it has one.
    """

    def __init__(
        self, models: Sequence[StoredModel], references: Mapping[str, Path | None]
    ) -> None:
        self._versions = {
            model.card.tag: _Version(_files(model, references.get(model.card.tag)))
            for model in models
        }
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="file-watch", daemon=True)

    @property
    def damaged(self) -> Mapping[str, int]:
        """How many files of each version, by tag, were missing or changed at the last look."""
        return {tag: len(version.damaged) for tag, version in self._versions.items()}

    def start(self) -> None:
        """Start the side thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop. A look at a file system that hangs is not waited for."""
        self._closing.set()

    def step(self) -> None:
        """Look at every file, and log what has changed since the last look."""
        for tag, version in self._versions.items():
            damaged = [name for name, file in version.files.items() if not file.is_intact()]
            if damaged and damaged != version.damaged:
                logger.error(
                    "model_files_damaged",
                    model=tag,
                    count=len(damaged),
                    files=damaged[:_MAX_TOLD],
                    remedy="restore them from a copy; this worker serves on from memory, and no "
                    "other could start",
                )
            elif version.damaged and not damaged:
                logger.info("model_files_restored", model=tag)
            version.damaged = damaged

    def _run(self) -> None:
        while not self._closing.wait(INTERVAL_S):
            self.step()


def _files(model: StoredModel, reference: Path | None) -> dict[str, _File]:
    """Return all that a start would read of a version."""
    digests: dict[Path, str | None] = {
        model.folder / name: digest for name, digest in model.card.files.items()
    }
    others = [model.folder / name for name in (CARD_FILE, BENTOML_FILE, SIGNATURE_FILE)]
    others += sorted(reference.iterdir()) if reference and reference.is_dir() else []
    digests |= {path: _digest(path) for path in others if path.is_file()}
    return {
        path.relative_to(model.folder).as_posix(): _File(path, digest, _status(path))
        for path, digest in digests.items()
    }


def _status(path: Path) -> _Status | None:
    """Return what tells whether a file was changed; None where it cannot be seen."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _digest(path: Path) -> str | None:
    try:
        return sha256(path)
    except OSError:
        return None
