"""Stores profiles at a target that may be unavailable, and finds them again."""

import math
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import structlog

from kaiten import model_tags
from monitors.drift.archive.names import ArchivedProfile, folder_of
from monitors.drift.archive.outbox import Outbox
from monitors.drift.archive.target import Target
from monitors.drift.spool import Source
from monitors.drift.windows import EndedWindow

logger = structlog.get_logger(__name__)
_BEGINNING = datetime.min.replace(tzinfo=UTC)


class Archive:
    """The profiles of windows, at a folder or an address; None is the folder profiles in ``home``.

    A profile that the target does not accept waits in ``home``, and is tried again with a later
    window. At most ``max_waiting`` profiles of about 20 kB wait. ``put`` takes ``timeout_s`` at
    most, and a target that has failed is left alone for ``pause_s``. One thread puts.
    """

    def __init__(
        self,
        target: str | None,
        home: Path,
        timeout_s: float = 5,
        pause_s: float = 60,
        max_waiting: int = 1000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._target = Target(target or str((home / "profiles").absolute()))
        self._outbox = Outbox(home / "profiles-waiting", max_waiting)
        self._host = socket.gethostname()
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._clock = clock
        self._paused_until = -math.inf
        self._failing = False

    def put(self, content: bytes, window: EndedWindow, pseudonym: str | None = None) -> None:
        """Store the profile of a window; ``pseudonym`` is its subject's, None for all answers.

        Idempotent.
        """
        path = ArchivedProfile.of(window, pseudonym, self._host).path
        deadline = self._clock() + self._timeout_s
        if not self._deliver(path, content, deadline):
            self._hold(path, content)
            return
        try:
            self._deliver_waiting(deadline)
        except OSError as error:
            logger.warning("profiles_not_delivered", fault=error.strerror or type(error).__name__)

    def sources(self, model: str = "") -> list[Source]:
        """Return the sources in the archive: all, or those of a model name or model tag."""
        return sorted(self._sources(*model_tags.split(model)))

    def profiles(
        self, source: Source, since: datetime = _BEGINNING, pseudonym: str | None = None
    ) -> list[ArchivedProfile]:
        """Return the profiles of windows that ended since an instant, oldest first."""
        names = self._target.names(folder_of(source, pseudonym), "file")
        profiles = (ArchivedProfile.parse(source, pseudonym, name) for name in names)
        return [
            profile for profile in profiles if profile is not None and profile.ended_at >= since
        ]

    def read(self, profile: ArchivedProfile) -> bytes:
        """Return the content of a profile."""
        return self._target.read(profile.path)

    def _sources(self, name: str, version: str) -> Iterator[Source]:
        for model in [name] if name else self._folders():
            for number in [version] if version else self._folders(model):
                for arm in self._folders(model, number):
                    yield Source(f"{model}:{number}", arm)

    def _folders(self, *parts: str) -> list[str]:
        return self._target.names(PurePosixPath(*parts), "directory")

    def _deliver(self, path: PurePosixPath, content: bytes, deadline: float) -> bool:
        """Write a file unless the target is paused; return whether it was written."""
        left_s = deadline - self._clock()
        if left_s <= 0 or self._clock() < self._paused_until:
            return False
        try:
            self._target.write(path, content, left_s)
        except Exception as error:  # noqa: BLE001  a store's library raises errors of its own
            self._paused_until = self._clock() + self._pause_s
            self._log_change(error)
            return False
        self._log_change(None)
        return True

    def _deliver_waiting(self, deadline: float) -> None:
        for path in self._outbox.waiting():
            if not self._deliver(path, self._outbox.read(path), deadline):
                return
            self._outbox.remove(path)

    def _hold(self, path: PurePosixPath, content: bytes) -> None:
        try:
            dropped = self._outbox.put(path, content)
        except OSError as error:
            # The window must be judged all the same.
            logger.warning(
                "profiles_dropped", count=1, oldest=path.name, fault=type(error).__name__
            )
            return
        if dropped:
            logger.warning("profiles_dropped", count=len(dropped), oldest=dropped[0].name)

    def _log_change(self, error: Exception | None) -> None:
        """Log once that the target fails, and once that it accepts profiles again."""
        failed = error is not None
        if failed and not self._failing:
            logger.warning("profiles_not_archived", fault=type(error).__name__)
        elif self._failing and not failed:
            logger.info("profiles_archived_again", waiting=len(self._outbox.waiting()))
        self._failing = failed
