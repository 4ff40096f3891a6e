"""Processes of a server in this one: each with the real watch, over a store and files that fail."""

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

from gateway.auth.credential_stores import FileCredentials
from gateway.auth.credentials import (
    Change,
    Credentials,
    CredentialStore,
    key_id_of,
    new_api_key,
)
from gateway.auth.revocation_watch import CredentialStores, CredentialsWatch
from gateway.auth.verifier import StaticKey, TokenRejected, Verified
from kaiten.context import Principal
from kaiten.errors import NotReady, StateUnavailable

ISSUER = "https://login.example.org/"
_IN_A_YEAR = datetime.now(UTC) + timedelta(days=365)


class LossyStore:
    """What Redis is to the watch: one value that may vanish, turn old, or be out of reach."""

    def __init__(self) -> None:
        self.value: Credentials | None = None
        self.down = False

    def read(self) -> Credentials | None:
        if self.down:
            raise StateUnavailable("the store", "down")
        return self.value

    def change(self, change: Change) -> None:
        self.value = change(self.read() or Credentials())


class ServerProcesses:
    """One process that starts workers, its workers, an operator, and what each should accept.

    ``connect`` opens the store anew, as each process has its own connection. ``with_host_copy``
    is how it is with a Redis; without, the store itself lies in the home.
    """

    def __init__(
        self,
        folder: Path,
        connect: Callable[[Path], CredentialStore],
        *,
        with_host_copy: bool,
        workers: int = 2,
    ) -> None:
        self.home, self.run = folder / "home", folder / "run"
        self.home.mkdir()
        self.run.mkdir(0o700)
        self._connect, self._with_host_copy = connect, with_host_copy
        self._numbers = count()
        self.guard = self._watch(guards=True)
        self.guard.poll()
        self.workers = [self._watch() for _ in range(workers)]
        # The operator's changes, and the list that every process has read since.
        self.issued: dict[str, str] = {}
        self.revoked: set[str] = set()
        self.deleted: dict[str, str] = {}
        self.known_keys: set[str] = set()
        self.known_revoked: set[str] = set()
        self.known_deleted: set[str] = set()
        self.round()

    def places(self) -> CredentialStores:
        host = FileCredentials(self.home / "copy.json") if self._with_host_copy else None
        server = FileCredentials(self.run / "credentials.json", private=True)
        return CredentialStores(self._connect(self.home), host, server)

    def _watch(self, *, guards: bool = False) -> CredentialsWatch:
        return CredentialsWatch(self.places(), 1, guards=guards)

    # What an operator does.

    def create_key(self) -> None:
        key_id, text, key = new_api_key(f"job {next(self._numbers)}", ("predict",), _IN_A_YEAR)
        self._operate(
            lambda credentials: credentials.model_copy(
                update={"api_keys": {**credentials.api_keys, key_id: key}}
            )
        )
        self.issued[key_id] = text

    def delete_key(self, index: int) -> None:
        if self.known_keys:
            key_id = sorted(self.known_keys)[index % len(self.known_keys)]
            # An emptied store does not know it until a worker has written it back.
            self._operate(
                lambda credentials: (
                    credentials.without_api_key(key_id)
                    if key_id in credentials.api_keys
                    else _unknown()
                )
            )
            self.deleted[key_id] = self.issued.pop(key_id)
            self.known_keys.discard(key_id)

    def revoke_token(self) -> None:
        name = f"{ISSUER}|{next(self._numbers)}"
        self._operate(
            lambda credentials: credentials.model_copy(
                update={
                    "revoked_tokens": {
                        **credentials.revoked_tokens,
                        name: int(time.time()) + 86_400,
                    }
                }
            )
        )
        self.revoked.add(name)

    def _operate(self, change: Change) -> None:
        self._connect(self.home).change(change)

    # What befalls them.

    def delete_home(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)

    def delete_server_copy(self) -> None:
        shutil.rmtree(self.run, ignore_errors=True)

    def replace_worker(self, index: int) -> None:
        self.workers[index % len(self.workers)] = self._watch()

    def replace_all_workers(self) -> None:
        self.workers = [self._watch() for _ in self.workers]

    def round(self, order: int = 0) -> None:
        """Let each process poll once, beginning with any of them, and new ones until they know."""
        processes = [self.guard, *self.workers]
        first = order % len(processes)
        for watch in processes[first:] + processes[:first]:
            watch.poll()
            self.check_revoked()
        for watch in self.workers:
            if not watch.known:
                watch.poll()
        self.check_revoked()
        self.check_keys()
        self.check_store()
        if all(self._knows(watch) for watch in processes):
            self.known_keys = {*self.issued}
            self.known_revoked |= self.revoked
            self.known_deleted |= self.deleted.keys()

    def _knows(self, watch: CredentialsWatch) -> bool:
        """Tell whether a process has taken all that the operator has done."""
        if not watch.known:
            return False
        credentials = watch.current()
        gone = {f"api-key|{key_id}" for key_id in self.deleted}
        return (self.revoked | gone) <= credentials.revoked_tokens.keys() and (
            self.issued.keys() <= credentials.api_keys.keys()
        )

    # Invariants.

    def check_revoked(self) -> None:
        """Raise if a worker accepts what every process has once known to be revoked."""
        for watch in self.workers:
            for name in self.known_revoked:
                assert not _accepts_token(watch, name), f"revoked token {name} is accepted"
            for key_id in self.known_deleted:
                assert not _accepts_key(watch, self.deleted[key_id]), "deleted key is accepted"

    def check_keys(self) -> None:
        """Raise if a worker refuses a key after its poll that every process has once known."""
        for watch in self.workers:
            assert watch.known, "a worker is not ready after a poll"
            for key_id in self.known_keys:
                assert _accepts_key(watch, self.issued[key_id]), "a valid key is refused"

    def check_store(self) -> None:
        """Raise if the store, where it can be read, lacks what every process has once known."""
        with suppress(StateUnavailable):
            stored = self._connect(self.home).read() or Credentials()
            assert self.known_keys <= stored.api_keys.keys(), "a key was not written back"
            assert self.known_revoked <= stored.revoked_tokens.keys(), "nor a revocation"


def _unknown() -> Credentials:
    raise StateUnavailable("the store", "no such key")


def _accepts_token(watch: CredentialsWatch, name: str) -> bool:
    issuer, _, token_id = name.partition("|")
    principal = Principal("alice", frozenset(), issuer)
    verified = Verified(principal, 2**40, 0, token_id, StaticKey.__new__(StaticKey), 0)
    try:
        watch.current().check(verified)
    except (NotReady, TokenRejected):
        return False
    return True


def _accepts_key(watch: CredentialsWatch, text: str) -> bool:
    assert key_id_of(text)
    try:
        watch.current().principal_of(text, time.time())
    except (NotReady, TokenRejected):
        return False
    return True
