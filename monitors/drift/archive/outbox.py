"""Files that wait to be delivered, in a bounded folder."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from kaiten.files import replace_file

# The measures of callers' texts are readable by their owner only.
_MODE = 0o600


class Outbox:
    """At most ``max_files`` files, each under the path that it is to have at the target."""

    def __init__(self, folder: Path, max_files: int) -> None:
        self._folder = folder
        self._max_files = max_files

    def put(self, name: PurePosixPath, content: bytes) -> Sequence[PurePosixPath]:
        """Add a file; return the oldest files, which were removed for it."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content, _MODE)
        removed = self.waiting()[: -self._max_files]
        for oldest in removed:
            self.remove(oldest)
        return removed

    def read(self, name: PurePosixPath) -> bytes:
        """Return the content of a file."""
        return (self._folder / name).read_bytes()

    def remove(self, name: PurePosixPath) -> None:
        """Remove a delivered file."""
        (self._folder / name).unlink(missing_ok=True)

    def waiting(self) -> list[PurePosixPath]:
        """Return the files, oldest first: their names begin with a time."""
        # A file that is being written has another suffix.
        paths = self._folder.rglob("*.bin")
        names = (PurePosixPath(path.relative_to(self._folder)) for path in paths)
        return sorted(names, key=lambda name: name.name)
