"""API keys and revocations, kept in a file or a real Redis, and read by every worker."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr
from redis import Redis
from structlog.testing import capture_logs

from gateway.auth.authenticator import Authenticator
from gateway.auth.credential_stores import FileCredentials, credential_store
from gateway.auth.credentials import Credentials, CredentialStore, new_api_key
from gateway.auth.redis_credential_store import RedisCredentials
from gateway.auth.revocation_watch import CredentialStores, CredentialsWatch
from gateway.auth.verification_keys import from_pem
from gateway.auth.verifier import StaticKey, TokenRejected, TrustedIssuer, Verifier
from kaiten.errors import NotReady, StateUnavailable, Unauthenticated
from kaiten.settings.models import StateSettings
from tests.redis_server import redis_server
from tests.unit.gateway.auth.mint import AUDIENCE, ISSUER, public_pem, token

NOW = 1_800_000_000.0
SOON = datetime.fromtimestamp(NOW + 60, UTC)


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with redis_server() as server:
        yield server.url


@pytest.fixture(params=["file", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CredentialStore:
    if request.param == "file":
        return FileCredentials(tmp_path / "credentials.json")
    url = request.getfixturevalue("redis_url")
    Redis.from_url(url).flushdb()
    return RedisCredentials(url)


def with_key(
    credentials: Credentials, name: str = "job", expires_at: datetime = SOON
) -> tuple[Credentials, str]:
    key_id, text, record = new_api_key(name, ("predict",), expires_at, lambda: NOW)
    return credentials.model_copy(
        update={"api_keys": {**credentials.api_keys, key_id: record}}
    ), text


def credentials_of(store: CredentialStore) -> Credentials:
    credentials = store.read()
    assert credentials is not None
    return credentials


def fault(call: Callable[[], object]) -> str:
    with pytest.raises(TokenRejected) as caught:
        call()
    return caught.value.fault


def test_api_key_holds_until_it_expires() -> None:
    credentials, text = with_key(Credentials())
    assert credentials.principal_of(text, NOW).subject == "job"
    assert credentials.principal_of(text, NOW).scopes == {"predict"}
    assert fault(lambda: credentials.principal_of(text, NOW + 60)) == "expired_api_key"


def test_api_key_is_kept_as_a_hash_only() -> None:
    credentials, text = with_key(Credentials())
    assert text.startswith("kaiten_")
    assert text[24:] not in credentials.model_dump_json()
    assert text not in repr(credentials)


@pytest.mark.parametrize("change", ["", "kaiten_", "cut", "another secret", "another id", "longer"])
def test_what_is_no_api_key_of_ours_is_refused(change: str) -> None:
    credentials, text = with_key(Credentials())
    _, other_text = with_key(Credentials())
    wrong_text = {
        "cut": text[:-1],
        "another secret": text[:24] + other_text[24:],
        "another id": other_text[:24] + text[24:],
        "longer": text + "A",
    }.get(change, change)
    assert fault(lambda: credentials.principal_of(wrong_text, NOW)) == "unknown_api_key"


def test_revoked_subject_loses_what_it_has_and_not_what_it_gets() -> None:
    credentials, text = with_key(Credentials())
    revoked = credentials.model_copy(update={"revoked_subjects": {"api-key|job": int(NOW)}})
    assert fault(lambda: revoked.principal_of(text, NOW)) == "revoked_subject"
    later = new_api_key("job", ("predict",), SOON, lambda: NOW + 1)
    again = revoked.model_copy(update={"api_keys": {later[0]: later[2]}})
    assert again.principal_of(later[1], NOW + 1).subject == "job"


def test_expired_is_forgotten_and_revoked_subjects_are_not() -> None:
    credentials, _ = with_key(Credentials())
    credentials = credentials.model_copy(
        update={"revoked_tokens": {"a|1": int(NOW) + 5}, "revoked_subjects": {"a|b": 1}}
    )
    assert credentials.without_expired(NOW) == credentials
    later = credentials.without_expired(NOW + 100)
    assert (later.api_keys, later.revoked_tokens, later.revoked_subjects) == ({}, {}, {"a|b": 1})


def test_clock_that_is_ahead_for_a_moment_deletes_nothing() -> None:
    credentials, text = with_key(Credentials())
    credentials, _ = with_key(credentials, "deleted")
    (*_, deleted_id) = credentials.api_keys
    credentials = credentials.without_api_key(deleted_id).with_revoked(tokens={"a|1": int(NOW) + 5})
    assert credentials.merged(Credentials(), NOW + 60 * 86_400) == credentials
    assert credentials.principal_of(text, NOW).subject == "job"
    assert fault(lambda: credentials.principal_of(text, NOW + 60)) == "expired_api_key"


def test_mark_of_a_deleted_key_outlasts_every_copy_of_it() -> None:
    older, text = with_key(Credentials())
    (key_id,) = older.api_keys
    deleted = older.without_api_key(key_id)
    for days in range(100):
        now = NOW + 86_400 * days
        merged = deleted.merged(older, now)
        assert merged.api_keys == {}
        if merged.revoked_tokens:
            assert fault(lambda: merged.principal_of(text, NOW)) == "revoked_api_key"  # noqa: B023
    assert merged == Credentials()
    assert older.merged(Credentials(), now) == Credentials()


def test_later_revocation_of_a_subject_is_not_taken_back_by_an_earlier() -> None:
    credentials = Credentials().with_revoked(subjects={"a|b": 5}, tokens={"a|1": 5})
    assert credentials.with_revoked(subjects={"a|b": 3}, tokens={"a|1": 3}) == credentials


def test_key_made_right_after_its_subject_was_revoked_holds_until_that_is_done_again() -> None:
    revoked = Credentials().with_revoked(subjects={"api-key|job": int(NOW) + 10})
    key_id, text, key = new_api_key("job", ("predict",), SOON, lambda: NOW)
    credentials = revoked.with_api_key(key_id, key)
    assert credentials.principal_of(text, NOW).subject == "job"
    again = credentials.with_revoked(subjects={"api-key|job": int(NOW) + 10})
    assert fault(lambda: again.principal_of(text, NOW)) == "revoked_subject"


def test_store_gives_back_what_it_was_given(store: CredentialStore) -> None:
    assert store.read() is None
    credentials, text = with_key(Credentials())
    store.change(lambda _: credentials)
    assert credentials_of(store).principal_of(text, NOW).subject == "job"


def test_of_many_changes_at_once_all_take_effect(store: CredentialStore) -> None:
    def add(name: str) -> None:
        store.change(lambda credentials: with_key(credentials, name)[0])

    threads = [threading.Thread(target=add, args=(f"job {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    subjects = {key.subject for key in credentials_of(store).api_keys.values()}
    assert subjects == {f"job {number}" for number in range(8)}


def test_file_is_its_owners(tmp_path: Path) -> None:
    FileCredentials(tmp_path / "credentials.json").change(lambda credentials: credentials)
    assert (tmp_path / "credentials.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("spoilt", ["", "{", '{"api_keys": 5}'])
def test_spoilt_file_is_told_and_nothing_is_lost(spoilt: str, tmp_path: Path) -> None:
    store = FileCredentials(tmp_path / "credentials.json")
    store.change(lambda credentials: with_lasting_key(credentials)[0])
    watch = CredentialsWatch(CredentialStores(store), 1)
    watch.poll()
    before = watch.current()
    (tmp_path / "credentials.json").write_text(spoilt)
    with capture_logs() as logs:
        watch.poll()
        watch.poll()
    # Revocations stay, and the log shows it once.
    assert watch.current() == before
    assert [line["event"] for line in logs] == ["credentials_not_read"]
    with pytest.raises(StateUnavailable):
        store.change(lambda credentials: credentials)
    # The runbook's remedy: without the spoilt file, it is written anew.
    (tmp_path / "credentials.json").unlink()
    watch.poll()
    assert store.read() == before


def test_whoever_revokes_sees_when_it_is_known(store: CredentialStore) -> None:
    watch = CredentialsWatch(CredentialStores(store), 1)
    with capture_logs() as logs:
        watch.poll()
        watch.poll()
        store.change(lambda _: Credentials(revoked_tokens={"a|1": 2**40}))
        watch.poll()
        watch.poll()
    revoked_counts = [
        line["revoked_tokens"] for line in logs if line["event"] == "credentials_read"
    ]
    assert revoked_counts == [1]


def test_any_error_of_a_store_is_logged_and_polling_continues() -> None:
    class Broken:
        def read(self) -> Credentials:
            raise UnicodeError("idna")

        def change(self, change: object) -> None: ...

    watch = CredentialsWatch(CredentialStores(Broken()), 1)
    with capture_logs() as logs:
        watch.poll()
    assert (logs[0]["event"], logs[0]["reason"]) == ("credentials_not_read", "UnicodeError")
    assert not watch.known


def test_redis_that_is_away_is_reported_without_its_password() -> None:
    state = StateSettings(redis_url=SecretStr("redis://:pa55w0rd-of-it@127.0.0.1:1/0"))
    store = credential_store(Path(), state)
    for act in (store.read, lambda: store.change(lambda credentials: credentials)):
        with pytest.raises(StateUnavailable) as caught:
            act()
        assert "pa55w0rd" not in caught.value.message


def test_redis_that_came_back_empty_is_given_what_is_known(redis_url: str) -> None:
    with Redis.from_url(redis_url) as client:
        client.flushdb()
        RedisCredentials(redis_url).change(lambda credentials: with_lasting_key(credentials)[0])
        watches = [
            CredentialsWatch(CredentialStores(RedisCredentials(redis_url)), 1) for _ in range(2)
        ]
        poll(watches)
        before = watches[0].current()
        client.flushdb()
        restored: list[int] = []
        counting = SimpleNamespace(credentials_restored=restored.append)
        watches.append(CredentialsWatch(CredentialStores(RedisCredentials(redis_url)), 1, counting))
        with capture_logs() as logs:
            poll(watches)
        assert [line["event"] for line in logs] == ["credentials_restored", "credentials_read"]
        assert RedisCredentials(redis_url).read() == before
        # Entries that others have added since stay, and so do known ones.
        client.flushdb()
        poll(watches[2:])
        client.flushdb()
        RedisCredentials(redis_url).change(
            lambda credentials: with_lasting_key(credentials, "later")[0]
        )
        poll(watches[2:])
        assert restored == [1, 1]
        poll(watches)
        subjects = {
            key.subject for key in credentials_of(RedisCredentials(redis_url)).api_keys.values()
        }
        assert subjects == {"job", "later"}


# None is not the dictionary that a list has, which is noticed after it was read.
_NO_LIST: dict[str, Any] = {"api_keys": None}


class Spoilt:
    """A store with unexpected content, for a number of reads."""

    def __init__(self, faults: int) -> None:
        self.faults = faults

    def read(self) -> Credentials:
        self.faults -= 1
        return Credentials.model_construct(**_NO_LIST) if self.faults >= 0 else Credentials()

    def change(self, change: object) -> None: ...


def test_thread_goes_on_polling_whatever_a_poll_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def sleep(wait_s: float) -> None:
        waits.append(wait_s)
        if len(waits) == 11:
            raise SystemExit

    started: list[Callable[[], None]] = []

    def thread(target: Callable[[], None], **_: object) -> SimpleNamespace:
        return SimpleNamespace(start=lambda: started.append(target))

    clock = SimpleNamespace(sleep=sleep, time=time.time)
    monkeypatch.setattr("gateway.auth.revocation_watch.time", clock)
    monkeypatch.setattr("gateway.auth.revocation_watch.threading", SimpleNamespace(Thread=thread))
    watch = CredentialsWatch(CredentialStores(Spoilt(8)), 1)
    with capture_logs() as logs:
        watch.keep_current_on_a_thread()
        with pytest.raises(SystemExit):
            started[0]()
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, 1, 1]
    assert watch.known
    failed = [line for line in logs if line["event"] == "credentials_poll_failed"]
    assert [line["retry_in_s"] for line in failed] == waits[1:9]
    assert {line["error"] for line in failed} == {"TypeError"}
    assert [line["event"] for line in logs].count("credentials_polled_again") == 1


async def test_worker_goes_on_polling_whatever_a_poll_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []

    async def sleep(wait_s: float) -> None:
        waits.append(wait_s)
        if len(waits) == 4:
            raise asyncio.CancelledError

    patched = SimpleNamespace(sleep=sleep, to_thread=asyncio.to_thread)
    monkeypatch.setattr("gateway.auth.revocation_watch.asyncio", patched)
    watch = CredentialsWatch(CredentialStores(Spoilt(2)), 1)
    with pytest.raises(asyncio.CancelledError):
        await watch.keep_current()
    assert waits == [2, 4, 1, 1]
    assert watch.known


def poll(watches: Sequence[CredentialsWatch]) -> None:
    for watch in watches:
        watch.poll()


def with_lasting_key(credentials: Credentials, name: str = "job") -> tuple[Credentials, str]:
    """Return them with a key that holds by the clock of this machine."""
    return with_key(credentials, name, datetime.now(UTC) + timedelta(days=1))


def test_nobody_is_let_in_before_the_list_was_read() -> None:
    watch = CredentialsWatch(CredentialStores(RedisCredentials("redis://127.0.0.1:1/0")), 1)
    watch.poll()
    with pytest.raises(NotReady):
        watch.current()


def authenticator(credentials: list[Credentials], keys: StaticKey | None = None) -> Authenticator:
    key = keys or StaticKey(from_pem(public_pem("ES256")))
    issuers = {ISSUER: TrustedIssuer(ISSUER, AUDIENCE, key, frozenset({"ES256"}))}
    return Authenticator(Verifier(issuers, 10), lambda: credentials[-1])


async def test_token_that_was_seen_is_refused_as_soon_as_it_is_revoked() -> None:
    credentials = [Credentials()]
    checker = authenticator(credentials)
    first_token, second_token = token(), token(jti="two")
    for _ in range(2):
        await checker.authenticate([f"Bearer {first_token}"], [])
    credentials.append(Credentials(revoked_tokens={f"{ISSUER}|one": 2**40}))
    with pytest.raises(TokenRejected) as caught:
        await checker.authenticate([f"Bearer {first_token}"], [])
    assert caught.value.fault == "revoked_token"
    # So that an operator sees which subject still uses it.
    assert caught.value.principal is not None
    assert caught.value.principal.subject == "alice"
    assert await checker.authenticate([f"Bearer {second_token}"], [])


async def test_revoked_subject_needs_a_token_of_later() -> None:
    now = int(time.time())
    checker = authenticator([Credentials(revoked_subjects={f"{ISSUER}|alice": now - 5})])
    for issued_at in (now - 60, now - 5, None):
        with pytest.raises(TokenRejected) as caught:
            await checker.authenticate_token(token(iat=issued_at))
        assert caught.value.fault == "revoked_subject"
    assert await checker.authenticate_token(token(iat=now - 4))
    assert await checker.authenticate_token(token(sub="bob", iat=now - 60))


async def test_token_is_verified_again_once_a_key_is_gone() -> None:
    class Changing(StaticKey):
        generation = 0

    keys = Changing(from_pem(public_pem("ES256")))
    checker = authenticator([Credentials()], keys)
    es256_token = token()
    assert await checker.authenticate_token(es256_token)
    keys._key = from_pem(public_pem("ES256#other"))
    assert await checker.authenticate_token(es256_token)
    Changing.generation = 1
    with pytest.raises(TokenRejected):
        await checker.authenticate_token(es256_token)


async def test_one_of_the_two_headers_and_once() -> None:
    credentials, key = with_key(Credentials(), expires_at=datetime.now(UTC) + timedelta(hours=1))
    checker, bearer = authenticator([credentials]), f"Bearer {token()}"
    assert (await checker.authenticate([], [key])).issuer == "api-key"
    assert (await checker.authenticate([bearer], [])).subject == "alice"
    for authorizations, keys in (([bearer], [key]), ([bearer, bearer], []), ([], [key, key])):
        with pytest.raises(TokenRejected) as caught:
            await checker.authenticate(authorizations, keys)
        assert caught.value.fault == "several_credentials"
    for nothing in ([], ["Basic YTpi"], ["Bearer "], [token()]):
        with pytest.raises(Unauthenticated):
            await checker.authenticate(nothing, [])


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.auth.authenticator._MAX_REMEMBERED", 3)
    checker = authenticator([Credentials()])
    for number in range(6):
        await checker.authenticate_token(token(sub=f"subject {number}"))
    assert len(checker._verified) == 3
