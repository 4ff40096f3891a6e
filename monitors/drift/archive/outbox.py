"""What could not be delivered, kept in a folder until it can be; of too many, the oldest go."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from kaiten.files import replace

# Whose measures they are is nobody else's business.
_MODE = 0o600


class Outbox:
    """Holds at most so many files, each under the path that it is to have elsewhere."""

    def __init__(self, folder: Path, most: int) -> None:
        self._folder = folder
        self._most = most

    def put(self, name: PurePosixPath, content: bytes) -> Sequence[PurePosixPath]:
        """Keep a file, and return those that had to go for it, oldest first."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, content, _MODE)
        gone = self.waiting()[: -self._most]
        for each in gone:
            self.forget(each)
        return gone

    def read(self, name: PurePosixPath) -> bytes:
        """Return what a file holds."""
        return (self._folder / name).read_bytes()

    def forget(self, name: PurePosixPath) -> None:
        """Remove a file that is where it belongs."""
        (self._folder / name).unlink(missing_ok=True)

    def waiting(self) -> list[PurePosixPath]:
        """Return what is kept, oldest first: file names begin with a time."""
        # A file that is being written has another suffix.
        found = (
            PurePosixPath(path.relative_to(self._folder)) for path in self._folder.rglob("*.bin")
        )
        return sorted(found, key=lambda name: name.name)
