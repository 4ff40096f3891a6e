"""What was issued and revoked, as this process knows it."""

import asyncio
import operator
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from gateway.tokens.credentials import Credentials, CredentialStore
from gateway.tokens.stores import FileCredentials
from kaiten.errors import NotReady, StateUnavailable

# Until a list can be trusted: callers are refused meanwhile.
_FIRST_POLL_S = 0.2
# Between polls that fail in a way that nobody has foreseen.
_MAX_WAIT_S = 60.0
logger = structlog.get_logger(__name__)


class CredentialsObserver(Protocol):
    """Told of what happens to the list."""

    def credentials_restored(self, entries: int) -> None:
        """Count entries that the store had lost and that were written back to it."""


@dataclass(frozen=True, slots=True)
class Places:
    """The store that all hosts read, and the copies that outlast it.

    ``host`` is this host's copy of a Redis. ``server`` lives as long as this server and holds what
    any of its processes has learnt, so a worker that replaces another knows what that one knew.
    """

    store: CredentialStore
    host: FileCredentials | None = None
    server: FileCredentials | None = None

    @property
    def copies(self) -> Sequence[FileCredentials]:
        """The copies that there are."""
        return [copy for copy in (self.server, self.host) if copy is not None]


class CredentialsWatch:
    """Polls the store and keeps the union of all that it was ever told, until entries expire.

    A store that comes back empty or older is given what it lacks. ADR 14 has the states.
    ``guards`` is for the process that starts the workers: it trusts the store alone, makes the
    server's copy, makes it again if it is deleted, and leaves the store to the workers.
    """

    def __init__(
        self,
        places: Places,
        poll_s: float,
        observer: CredentialsObserver | None = None,
        clock: Callable[[], float] = time.time,
        *,
        guards: bool = False,
    ) -> None:
        self._places, self._poll_s = places, poll_s
        self._observer, self._clock, self._guards = observer, clock, guards
        self._current: Credentials | None = None
        self._away = self._failing = False
        self._failures = 0
        # What the store and the copies held when they last lacked nothing.
        self._complete: list[Credentials | None] | None = None

    def current(self) -> Credentials:
        """Return what is known; NotReady until a list was read that can be trusted."""
        if self._current is None:
            raise NotReady
        return self._current

    @property
    def known(self) -> bool:
        """Whether a list was read that can be trusted."""
        return self._current is not None

    def poll(self) -> None:
        """Read the store and the copies once, and write back what they lack."""
        stored, reached = self._stored()
        copied = {copy: self._copy_of(copy) for copy in self._places.copies}
        seen = [stored, *copied.values()]
        if self._current is not None and reached and _are_same(seen, self._complete):
            return
        # A worker whose server's copy is there goes by that while the store is away.
        server = None if self._guards else self._places.server
        trusted = reached if server is None else copied[server] is not None
        if self._current is None and not trusted:
            return
        self._take([self._current, *copied.values(), stored])
        written = [self._write(copy, held) for copy, held in copied.items()]
        if reached and not self._guards:
            written.append(self._restore(stored or Credentials()))
        # Nothing had to be written: until one of them changes, there is nothing to do.
        self._complete = seen if reached and not any(written) else None

    async def keep_current(self) -> None:
        """Poll until cancelled, on a thread: a store that hangs holds up no request."""
        while True:
            wait_s = await asyncio.to_thread(self._poll_in_any_case)
            await asyncio.sleep(wait_s)

    def keep_current_on_a_thread(self) -> None:
        """Poll for as long as this process lives."""

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

    def _take(self, versions: Sequence[Credentials | None]) -> None:
        """Know the union of all versions from now on."""
        known = Credentials()
        for version in versions:
            known = (version or Credentials()).merged(known, self._clock())
        if known != (self._current or Credentials()):
            # An operator who has revoked something looks for this line.
            counts = {name: len(entries) for name, entries in known}
            logger.info("credentials_read", **counts)
        self._current = known

    def _stored(self) -> tuple[Credentials | None, bool]:
        """Return what the store holds, None if it has no list, and whether it could be read."""
        try:
            stored = self._places.store.read()
        except Exception as error:  # noqa: BLE001  it has to go on, whatever a store trips over
            told = error.message if isinstance(error, StateUnavailable) else type(error).__name__
            if not self._away:
                # Nobody mends it by where it was raised.
                logger.error("credentials_not_read", reason=told)  # noqa: TRY400
            self._away = True
            return None, False
        if self._away:
            logger.info("credentials_read_again")
        self._away = False
        return stored, True

    def _restore(self, stored: Credentials) -> bool:
        """Write back what the store lacks of what this worker knows; return whether it did lack."""
        if not self.current().entries_missing_from(stored):
            return False
        missing = 0

        def merge(stored: Credentials) -> Credentials:
            nonlocal missing
            # Another worker may have been here first.
            missing = self.current().entries_missing_from(stored)
            return stored.merged(self.current(), self._clock())

        try:
            self._places.store.change(merge)
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
            # It is written anew below, from what is known.
            return None

    def _write(self, copy: FileCredentials, held: Credentials | None) -> bool:
        """Bring a copy up to date, which may be gone or spoilt; return whether it was not."""
        known = self.current()
        if held is not None and not known.entries_missing_from(held):
            return False
        try:
            copy.keep(known, self._clock())
            self._failing = False
        except StateUnavailable as error:
            if not self._failing:
                logger.error("credentials_not_copied", reason=error.message)  # noqa: TRY400
            self._failing = True
        return True


def _are_same(
    seen: Sequence[Credentials | None], before: Sequence[Credentials | None] | None
) -> bool:
    """Tell whether they are the same objects: a store gives the same one until it changes."""
    return before is not None and all(map(operator.is_, seen, before))
