"""Keeps this process's view of issued and revoked credentials current."""

import asyncio
import operator
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from gateway.auth.credential_stores import FileCredentials
from gateway.auth.credentials import Credentials, CredentialStore
from kaiten.errors import NotReady, StateUnavailable

# Polled faster until a list was read: callers are refused until then.
_FIRST_POLL_S = 0.2
# Between polls that fail unexpectedly.
_MAX_WAIT_S = 60.0
logger = structlog.get_logger(__name__)


class CredentialsObserver(Protocol):
    """Observes the restoration of credentials."""

    def credentials_restored(self, entries: int) -> None:
        """Count entries that the store had lost and that were written back to it."""


@dataclass(frozen=True, slots=True)
class CredentialStores:
    """The store that all hosts share, and local copies in case it loses its list.

    ``host`` is this host's copy of the list in Redis. ``server`` exists as long as this server and
    holds what any of its processes has read, so that a restarted worker knows what the one before
    it knew.
    """

    shared: CredentialStore
    host: FileCredentials | None = None
    server: FileCredentials | None = None

    @property
    def copies(self) -> Sequence[FileCredentials]:
        """The local copies in use."""
        return [copy for copy in (self.server, self.host) if copy is not None]


class CredentialsWatch:
    """Polls the store and keeps the union of all versions read, until entries expire.

    It restores entries to a store that comes back empty or older (see ADR 14). ``guards`` is for
    the process that starts the workers: it trusts the store alone, creates the server's copy,
    recreates it if it is deleted, and leaves restoring the store to the workers.
    """

    def __init__(
        self,
        stores: CredentialStores,
        poll_s: float,
        observer: CredentialsObserver | None = None,
        clock: Callable[[], float] = time.time,
        *,
        guards: bool = False,
    ) -> None:
        self._stores, self._poll_s = stores, poll_s
        self._observer, self._clock, self._guards = observer, clock, guards
        self._current: Credentials | None = None
        self._away = self._failing = False
        self._failures = 0
        # The content of the store and the copies when they last lacked nothing.
        self._complete: list[Credentials | None] | None = None

    def current(self) -> Credentials:
        """Return the credentials.

        Raises:
            NotReady: No trusted list has been read yet.

        """
        if self._current is None:
            raise NotReady
        return self._current

    @property
    def known(self) -> bool:
        """Whether a trusted list has been read."""
        return self._current is not None

    def poll(self) -> None:
        """Read the store and the copies once, and write back what they lack."""
        stored, reached = self._stored()
        copied = {copy: self._copy_of(copy) for copy in self._stores.copies}
        lists = [stored, *copied.values()]
        if self._current is not None and reached and _are_same(lists, self._complete):
            return
        # While the store is unavailable, a worker trusts the server's copy.
        server = None if self._guards else self._stores.server
        trusted = reached if server is None else copied[server] is not None
        if self._current is None and not trusted:
            return
        self._adopt([self._current, *copied.values(), stored])
        written = [self._update(copy, held) for copy, held in copied.items()]
        if reached and not self._guards:
            written.append(self._restore(stored or Credentials()))
        # Nothing had to be written, so the next polls return early until one of them changes.
        self._complete = lists if reached and not any(written) else None

    async def keep_current(self) -> None:
        """Poll on a thread until cancelled, so that a store that hangs delays no request."""
        while True:
            wait_s = await asyncio.to_thread(self._poll_in_any_case)
            await asyncio.sleep(wait_s)

    def keep_current_on_a_thread(self) -> None:
        """Poll on a daemon thread for as long as this process lives."""

        def run() -> None:
            wait_s = self._poll_s
            while True:
                time.sleep(wait_s)
                wait_s = self._poll_in_any_case()

        threading.Thread(target=run, name="credentials", daemon=True).start()

    def _poll_in_any_case(self) -> float:
        """Poll, and return the seconds until the next poll: more after each failure in a row.

        A process that stopped polling would never learn of a revocation again.
        """
        try:
            self.poll()
        except Exception as error:  # noqa: BLE001  whatever it is, the next poll may work
            self._failures = min(self._failures + 1, 10)
            wait_s = max(self._poll_s, min(self._poll_s * 2.0**self._failures, _MAX_WAIT_S))
            # Its text may quote an entry of the list.
            fault = type(error).__name__
            logger.error("credentials_poll_failed", error=fault, retry_in_s=wait_s)  # noqa: TRY400
            return wait_s
        if self._failures:
            logger.info("credentials_polled_again")
        self._failures = 0
        return self._poll_s if self.known else min(self._poll_s, _FIRST_POLL_S)

    def _adopt(self, versions: Sequence[Credentials | None]) -> None:
        """Make the union of all versions current."""
        union = Credentials()
        for version in versions:
            union = (version or Credentials()).merged(union, self._clock())
        if union != (self._current or Credentials()):
            # This line tells an operator that a revocation has reached the worker.
            counts = {name: len(entries) for name, entries in union}
            logger.info("credentials_read", **counts)
        self._current = union

    def _stored(self) -> tuple[Credentials | None, bool]:
        """Return the store's content, None if it has no list, and whether it could be read."""
        try:
            stored = self._stores.shared.read()
        except Exception as error:  # noqa: BLE001  polling goes on after any error
            reason = error.message if isinstance(error, StateUnavailable) else type(error).__name__
            if not self._away:
                # A traceback would not help to fix the store.
                logger.error("credentials_not_read", reason=reason)  # noqa: TRY400
            self._away = True
            return None, False
        if self._away:
            logger.info("credentials_read_again")
        self._away = False
        return stored, True

    def _restore(self, stored: Credentials) -> bool:
        """Write back the entries that the store lacks; return whether it lacked any."""
        if not self.current().entries_missing_from(stored):
            return False
        missing = 0

        def merge(stored: Credentials) -> Credentials:
            nonlocal missing
            # Another worker may have restored some meanwhile.
            missing = self.current().entries_missing_from(stored)
            return stored.merged(self.current(), self._clock())

        try:
            self._stores.shared.change(merge)
        except StateUnavailable as error:
            logger.error("credentials_not_restored", reason=error.message)  # noqa: TRY400
            return True
        if missing:
            logger.warning("credentials_restored", entries=missing)
            if self._observer is not None:
                self._observer.credentials_restored(missing)
        return True

    def _copy_of(self, copy: FileCredentials) -> Credentials | None:
        try:
            return copy.read()
        except StateUnavailable:
            # The caller writes the copy anew.
            return None

    def _update(self, copy: FileCredentials, held: Credentials | None) -> bool:
        """Write a copy that is missing, corrupt or outdated; return whether it was."""
        current = self.current()
        if held is not None and not current.entries_missing_from(held):
            return False
        try:
            copy.merge(current, self._clock())
            self._failing = False
        except StateUnavailable as error:
            if not self._failing:
                logger.error("credentials_not_copied", reason=error.message)  # noqa: TRY400
            self._failing = True
        return True


def _are_same(
    seen: Sequence[Credentials | None], before: Sequence[Credentials | None] | None
) -> bool:
    """Return whether all are the same objects: a store returns one object until it changes."""
    return before is not None and all(map(operator.is_, seen, before))
