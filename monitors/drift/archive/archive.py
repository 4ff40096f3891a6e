"""Keeping profiles at a target that may be away, and finding them again."""

import math
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import structlog

from kaiten import model_tags
from monitors.drift.archive.names import Kept, folder_of
from monitors.drift.archive.outbox import Outbox
from monitors.drift.archive.target import Target
from monitors.drift.spool import Source
from monitors.drift.windows import Window

logger = structlog.get_logger(__name__)
_ALWAYS = datetime.min.replace(tzinfo=UTC)


class Archive:
    """The profiles of windows, at a folder or an address; None is the folder profiles in ``home``.

    What the target does not take is kept in ``home``, ``most_waiting`` profiles of about 20 kB,
    and tried again with a later window. To put
    takes ``patience_s`` at most, whatever the target does, and one that has failed is not asked
    again for ``pause_s``. One thread puts.
    """

    def __init__(
        self,
        target: str | None,
        home: Path,
        patience_s: float = 5,
        pause_s: float = 60,
        most_waiting: int = 1000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._target = Target(target or str((home / "profiles").absolute()))
        self._outbox = Outbox(home / "profiles-waiting", most_waiting)
        self._host = socket.gethostname()
        self._patience_s = patience_s
        self._pause_s = pause_s
        self._clock = clock
        self._away_until = -math.inf
        self._failing = False

    def put(self, content: bytes, window: Window, tenant: str | None = None) -> None:
        """Keep the profile of a window; ``tenant`` is a pseudonym, None for the answers to all.

        To put it twice is as good as once.
        """
        path = Kept.of(window, tenant, self._host).path
        ends = self._clock() + self._patience_s
        if not self._delivered(path, content, ends):
            self._keep(path, content)
            return
        try:
            self._deliver_waiting(ends)
        except OSError as error:
            logger.warning("profiles_not_delivered", fault=error.strerror or type(error).__name__)

    def _deliver_waiting(self, ends: float) -> None:
        for waiting in self._outbox.waiting():
            if not self._delivered(waiting, self._outbox.read(waiting), ends):
                return
            self._outbox.forget(waiting)

    def sources(self, model: str = "") -> list[Source]:
        """Return what is kept: all, or a model's by its name or ``name:version``."""
        return sorted(self._sources(*model_tags.split(model)))

    def kept(
        self, source: Source, since: datetime = _ALWAYS, tenant: str | None = None
    ) -> list[Kept]:
        """Return the profiles of windows that ended since then, oldest first."""
        names = self._target.names(folder_of(source, tenant), "file")
        found = (Kept.named(source, tenant, name) for name in names)
        return [each for each in found if each is not None and each.ended_at >= since]

    def read(self, kept: Kept) -> bytes:
        """Return a profile as it was put."""
        return self._target.read(kept.path)

    def _sources(self, name: str, version: str) -> Iterator[Source]:
        for found in [name] if name else self._folders():
            for of in [version] if version else self._folders(found):
                for arm in self._folders(found, of):
                    yield Source(f"{found}:{of}", arm)

    def _folders(self, *parts: str) -> list[str]:
        return self._target.names(PurePosixPath(*parts), "directory")

    def _delivered(self, path: PurePosixPath, content: bytes, ends: float) -> bool:
        """Return whether a file is written now: not while the target is left alone."""
        left_s = ends - self._clock()
        if left_s <= 0 or self._clock() < self._away_until:
            return False
        try:
            self._target.write(path, content, left_s)
        except Exception as error:  # noqa: BLE001  whatever a store's library raises
            self._away_until = self._clock() + self._pause_s
            self._tell(error)
            return False
        self._tell(None)
        return True

    def _keep(self, path: PurePosixPath, content: bytes) -> None:
        try:
            dropped = self._outbox.put(path, content)
        except OSError as error:
            # Its window is to be judged all the same.
            logger.warning(
                "profiles_dropped", count=1, oldest=path.name, fault=type(error).__name__
            )
            return
        if dropped:
            logger.warning("profiles_dropped", count=len(dropped), oldest=dropped[0].name)

    def _tell(self, error: Exception | None) -> None:
        """Log that the target has failed, or takes profiles again: once each."""
        failed = error is not None
        if failed and not self._failing:
            logger.warning("profiles_not_archived", fault=type(error).__name__)
        elif self._failing and not failed:
            logger.info("profiles_archived_again", waiting=len(self._outbox.waiting()))
        self._failing = failed
