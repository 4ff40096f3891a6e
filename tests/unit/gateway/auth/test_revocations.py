"""Revocations and API keys through random sequences of faults, by the real watch and real files."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from structlog.testing import capture_logs

from gateway.auth.credential_stores import FileCredentials
from gateway.auth.credentials import Credentials, CredentialStore
from kaiten.errors import StateUnavailable
from tests.revocations import LossyStore, ServerProcesses

SOME = st.integers(0, 7)


class Faults(RuleBasedStateMachine):
    """What may befall a server with a file, in any order."""

    with_redis = False

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.store = LossyStore()
        self.older: list[Credentials | None] = [None]
        with capture_logs():
            self.server = ServerProcesses(
                Path(self._folder.name), self._connect, with_host_copy=self.with_redis
            )

    def _connect(self, home: Path) -> CredentialStore:
        return self.store if self.with_redis else FileCredentials(home / "credentials.json")

    def teardown(self) -> None:
        self._folder.cleanup()

    def _do(self, act: Callable[..., None], *arguments: int) -> None:
        with capture_logs():
            try:
                act(*arguments)
            except StateUnavailable:
                # The operator sees that nothing was recorded.
                return

    @rule()
    def key_is_created(self) -> None:
        self._do(self.server.create_key)

    @rule(index=SOME)
    def key_is_deleted(self, index: int) -> None:
        self._do(self.server.delete_key, index)

    @rule()
    def token_is_revoked(self) -> None:
        self._do(self.server.revoke_token)

    @rule(order=SOME)
    def all_poll(self, order: int) -> None:
        self._do(self.server.round, order)
        self.older.append(self.store.value)

    @rule()
    def home_is_deleted(self) -> None:
        self.server.delete_home()

    @rule()
    def server_copy_is_deleted(self) -> None:
        self.server.delete_server_copy()

    @rule(index=SOME)
    def worker_is_replaced(self, index: int) -> None:
        self.server.replace_worker(index)

    @rule()
    def all_workers_are_replaced(self) -> None:
        self.server.replace_all_workers()


class RedisFaults(Faults):
    """Also those of a Redis."""

    with_redis = True

    @rule()
    def store_is_emptied(self) -> None:
        self.store.value = None

    @rule(index=SOME)
    def store_is_an_older_copy(self, index: int) -> None:
        self.store.value = self.older[index % len(self.older)]

    @rule()
    def store_goes_away_or_comes_back(self) -> None:
        self.store.down = not self.store.down


_THOROUGH = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestFile = Faults.TestCase
TestFile.settings = _THOROUGH
TestRedis = RedisFaults.TestCase
TestRedis.settings = _THOROUGH


@pytest.fixture
def redis(tmp_path: Path) -> SimpleNamespace:
    """Return a server over a Redis that loses entries on request."""
    store = LossyStore()
    server = ServerProcesses(tmp_path, lambda _: store, with_host_copy=True)
    server.create_key()
    server.revoke_token()
    server.round()
    return SimpleNamespace(store=store, server=server)


def test_operator_who_is_first_to_write_to_an_emptied_store_loses_nothing(
    redis: SimpleNamespace,
) -> None:
    redis.store.value = None
    redis.server.revoke_token()
    with capture_logs() as logs:
        redis.server.round()
    assert len(redis.store.value.revoked_tokens) == 2
    assert len(redis.store.value.api_keys) == 1
    restored = [line["entries"] for line in logs if line["event"] == "credentials_restored"]
    assert restored == [2]


def test_worker_that_replaces_another_knows_what_that_one_knew_though_all_else_is_gone(
    redis: SimpleNamespace,
) -> None:
    redis.store.down = True
    redis.server.delete_home()
    redis.server.replace_all_workers()
    # The check of round: keys are accepted, and nothing that was revoked.
    redis.server.round()


def test_worker_with_nothing_to_go_by_accepts_nothing(redis: SimpleNamespace) -> None:
    redis.store.value = None
    redis.server.delete_home()
    redis.server.delete_server_copy()
    redis.server.replace_all_workers()
    for worker in redis.server.workers:
        worker.poll()
        assert not worker.known
    redis.server.guard.poll()
    redis.server.round()
    assert len(redis.store.value.revoked_tokens) == 1


def test_deleted_key_is_not_brought_back_by_an_older_copy(redis: SimpleNamespace) -> None:
    older = redis.store.value
    redis.server.delete_key(0)
    redis.server.round()
    redis.store.value = older
    redis.server.replace_all_workers()
    redis.server.round()
    assert redis.store.value.api_keys == {}


def test_copy_in_a_folder_of_another_account_or_open_to_one_is_not_used(
    redis: SimpleNamespace,
) -> None:
    redis.server.run.chmod(0o777)
    redis.server.replace_all_workers()
    for worker in redis.server.workers:
        worker.poll()
        assert not worker.known
