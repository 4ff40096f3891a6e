"""Watches the files of served model versions for damage and deletion.

A worker computes from memory and no longer needs the files, but a restarted worker could not start
without them.
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
_MAX_LOGGED = 5
# Size in bytes, mtime and ctime in nanoseconds, inode: writing or replacing a file changes one.
_Status = tuple[int, int, int, int]


@dataclass
class _File:
    """A file with its SHA-256 when loaded, and its last status found intact or damaged."""

    path: Path
    digest: str | None
    intact: _Status | None
    damaged: _Status | None = None

    def is_intact(self) -> bool:
        status = _status(self.path)
        if status is None or status in (self.intact, self.damaged):
            return status is not None and status == self.intact
        # Hashing is slow, so the file is read again only after its status has changed.
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
    """Checks the files of served versions every INTERVAL_S on a daemon thread.

    ``baselines`` maps a model tag to the folder of its baseline, None without one.
    """

    def __init__(self, models: Sequence[StoredModel], baselines: Mapping[str, Path | None]) -> None:
        self._versions = {
            model.card.tag: _Version(_files(model, baselines.get(model.card.tag)))
            for model in models
        }
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="file-watch", daemon=True)

    @property
    def damaged(self) -> Mapping[str, int]:
        """The number of missing or changed files at the last check, by model tag."""
        return {tag: len(version.damaged) for tag, version in self._versions.items()}

    def start(self) -> None:
        """Start the side thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop, without waiting for a check that hangs on its file system."""
        self._closing.set()

    def step(self) -> None:
        """Check every file once, and log changes since the last check."""
        for tag, version in self._versions.items():
            damaged = [name for name, file in version.files.items() if not file.is_intact()]
            if damaged and damaged != version.damaged:
                logger.error(
                    "model_files_damaged",
                    model=tag,
                    count=len(damaged),
                    files=damaged[:_MAX_LOGGED],
                    remedy="restore them from a copy; this worker serves from memory, but no "
                    "worker could start",
                )
            elif version.damaged and not damaged:
                logger.info("model_files_restored", model=tag)
            version.damaged = damaged

    def _run(self) -> None:
        while not self._closing.wait(INTERVAL_S):
            self.step()


def _files(model: StoredModel, baseline: Path | None) -> dict[str, _File]:
    """Return the files of a version that starting a worker reads, by name."""
    digests: dict[Path, str | None] = {
        model.folder / name: digest for name, digest in model.card.files.items()
    }
    unlisted = [model.folder / name for name in (CARD_FILE, BENTOML_FILE, SIGNATURE_FILE)]
    unlisted += sorted(baseline.iterdir()) if baseline and baseline.is_dir() else []
    digests |= {path: _digest(path) for path in unlisted if path.is_file()}
    return {
        path.relative_to(model.folder).as_posix(): _File(path, digest, _status(path))
        for path, digest in digests.items()
    }


def _status(path: Path) -> _Status | None:
    """Return a file's status, None if it cannot be read."""
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
