"""Builds the authenticator and its background tasks from the settings."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

import structlog

from gateway.auth.authenticator import Authenticator
from gateway.auth.credential_stores import FileCredentials, credential_store, host_copy
from gateway.auth.jwks import Fetch, JwksKeys
from gateway.auth.revocation_watch import CredentialsObserver, CredentialStores, CredentialsWatch
from gateway.auth.secret_keys import SecretKeys, read_secrets
from gateway.auth.signing_secret import ALGORITHM, SigningSecret
from gateway.auth.verification_keys import Key, from_pem, from_secret
from gateway.auth.verifier import StaticKey, TrustedIssuer, Verifier
from kaiten.addresses import proxy_bypass
from kaiten.errors import Detail, InvalidSettings, StateUnavailable
from kaiten.settings.loader import Settings
from kaiten.settings.models import Algorithm, AuthSettings, IssuerSettings, JwksSettings
from kaiten.settings.secrets import parse_secrets
from kaiten.settings.snapshot import read_key_file, replace_key_file

logger = structlog.get_logger(__name__)
_MAX_JWKS_BYTES = 1 << 20
_FETCH_TIMEOUT_S = 5.0
_MAX_RESTORE_WAIT_S = 10.0
_ALL = frozenset(get_args(Algorithm))
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Tokens:
    """The authenticator, and what keeps its credentials and keys current."""

    authenticator: Authenticator
    watch: CredentialsWatch
    jwks: tuple[JwksKeys, ...]
    secrets: tuple[SecretKeys, ...]
    poll_s: float

    def start(self) -> list[asyncio.Task[None]]:
        """Start the tasks that keep keys and credentials current until they are cancelled.

        A task that ends otherwise has failed, and is logged.
        """
        # Before the first request, so that it meets a worker with the current lists and secrets.
        self.watch.poll()
        for keys in self.secrets:
            keys.poll()
        coroutines: list[Coroutine[Any, Any, None]] = [self.watch.keep_current()]
        coroutines += [keys.keep_fresh() for keys in self.jwks]
        coroutines += [keys.keep_current(self.poll_s) for keys in self.secrets]
        tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
        for task in tasks:
            task.add_done_callback(_log_failure)
        return tasks


def _log_failure(task: "asyncio.Task[None]") -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        logger.critical("tokens_not_kept_current", error=type(error).__name__)


def build(
    settings: Settings,
    secret: SigningSecret | None,
    fetch: Fetch | None = None,
    observer: CredentialsObserver | None = None,
) -> Tokens:
    """Return the authenticator of the settings; ``secret`` signs the tokens of this service.

    Raises:
        InvalidSettings: A key file cannot be used.

    """
    auth = settings.auth
    issuers = {
        issuer.issuer: _trusted(issuer, auth.jwks, fetch or fetch_jwks) for issuer in auth.issuers
    }
    if secret is not None:
        key = SecretKeys(auth.issuer, secret.dated, _signing_key, secret.file)
        issuers[auth.issuer] = TrustedIssuer(auth.issuer, auth.audience, key, _ALL)
    copy = settings.state.credentials_copy
    watch = CredentialsWatch(_stores(settings, copy), auth.credentials_poll_s, observer)
    sources = [issuer.keys for issuer in issuers.values()]
    return Tokens(
        Authenticator(Verifier(issuers, auth.leeway_s), watch.current),
        watch,
        tuple(keys for keys in sources if isinstance(keys, JwksKeys)),
        tuple(keys for keys in sources if isinstance(keys, SecretKeys)),
        auth.credentials_poll_s,
    )


def guard_credentials(settings: Settings, copy: Path) -> None:
    """Keep the server's ``copy`` of the credentials current for as long as this process lives.

    A restarted worker reads it. The process that starts the workers calls this once.
    """
    poll_s = settings.auth.credentials_poll_s
    stores = _stores(settings, copy)
    if settings.state.redis_url is not None and _hold_nothing(stores):
        # Redis may just have lost its list. Give the workers of other hosts time to restore it.
        time.sleep(min(2 * poll_s, _MAX_RESTORE_WAIT_S))
    watch = CredentialsWatch(stores, poll_s, guards=True)
    watch.poll()
    watch.keep_current_on_a_thread()


def guard_secrets(tokens: Tokens, secret: SigningSecret | None) -> None:
    """Keep the secrets that workers inherit current for as long as this process lives.

    A worker that replaces another then knows a rotation, even if the file has become unusable
    since. ``secret`` is the one at the start if it keys the pseudonyms. The process that starts
    the workers calls this once.
    """
    followed = [keys for keys in tokens.secrets if keys.file is not None]
    handed_down = dict[Path, bytes]()

    def run() -> None:
        while True:
            time.sleep(tokens.poll_s)
            for keys in followed:
                hand_down_changes(keys, handed_down, secret)

    if followed:
        threading.Thread(target=run, name="secrets", daemon=True).start()


def hand_down_changes(
    keys: SecretKeys, handed_down: dict[Path, bytes], secret: SigningSecret | None
) -> None:
    """Poll a file of secrets, and hand its content down to later workers if it has changed."""
    keys.poll()
    file, content = keys.file, keys.content
    if file is None or content is None or handed_down.get(file) == content:
        return
    try:
        replace_key_file(file, content)
    except OSError as error:
        # For instance, no descriptor is free. The next poll tries again.
        logger.error("auth_secrets_not_handed_down", reason=error.strerror)  # noqa: TRY400
        return
    handed_down[file] = content
    if secret and file == secret.file and parse_secrets(content)[-1].value != secret.oldest:
        remedy = "restore the last line, which may have ended"
        logger.warning("pseudonyms_change_with_next_start", file=str(file), remedy=remedy)


def _stores(settings: Settings, copy: Path | None) -> CredentialStores:
    return CredentialStores(
        credential_store(settings.home, settings.state),
        host_copy(settings.home, settings.state),
        None if copy is None else FileCredentials(copy, private=True),
    )


def _hold_nothing(stores: CredentialStores) -> bool:
    """Return whether the shared store is readable and empty, and this host has no copy either."""
    with suppress(StateUnavailable):
        return stores.shared.read() is None and (stores.host is None or stores.host.read() is None)
    return False


def check_keys(auth: AuthSettings) -> None:
    """Check the key files of all issuers, without fetching any key.

    Raises:
        InvalidSettings: A key file cannot be used.

    """
    for issuer in auth.issuers:
        _trusted(issuer, auth.jwks, fetch_jwks)


def _trusted(issuer: IssuerSettings, jwks: JwksSettings, fetch: Fetch) -> TrustedIssuer:
    allowed = frozenset(issuer.algorithms) or _ALL
    keys = _keys(issuer, jwks, fetch)
    if not isinstance(keys, JwksKeys) and not keys.algorithms & allowed:
        reason = f"have none of what its key verifies: {', '.join(sorted(keys.algorithms))}"
        where = f"auth.issuers.{issuer.issuer}.algorithms"
        raise InvalidSettings([Detail(where, reason)], "settings")
    return TrustedIssuer(
        issuer.issuer,
        issuer.audience,
        keys,
        allowed,
        issuer.audience_claim,
        issuer.scope_claims,
        issuer.scope_map,
        scope_lists=True,
    )


def _keys(
    issuer: IssuerSettings, jwks: JwksSettings, fetch: Fetch
) -> JwksKeys | SecretKeys | StaticKey:
    if issuer.jwks_url is not None:
        return JwksKeys(issuer.jwks_url, jwks, fetch)
    if issuer.secret_file is not None:
        key_of = partial(_key_of_secret, allowed=frozenset(issuer.algorithms) or _ALL)
        secrets = _from_file(issuer, "secret_file", partial(read_secrets, key_of=key_of))
        return SecretKeys(issuer.issuer, secrets, key_of, issuer.secret_file.absolute())
    return StaticKey(_from_file(issuer, "public_key_file", from_pem))


def _key_of_secret(secret: str, allowed: frozenset[str]) -> Key:
    """Return the key of a shared secret.

    Raises:
        ValueError: It verifies none of the ``allowed`` algorithms.

    """
    key = from_secret(secret)
    if not key.algorithms & allowed:
        raise ValueError(
            f"holds a secret that verifies none of the allowed algorithms "
            f"({', '.join(sorted(allowed))}); HS256 needs 32 bytes, HS384 48 and HS512 64"
        )
    return key


def _signing_key(secret: str) -> Key:
    return Key(secret, frozenset({ALGORITHM}))


def _from_file(issuer: IssuerSettings, field: str, read: Callable[[bytes], ResultT]) -> ResultT:
    path: Path = getattr(issuer, field)
    try:
        return read(read_key_file(path))
    except OSError as error:
        reason = f"{path} cannot be read: {error.strerror}"
    except ValueError as error:
        reason = f"{path} {error}"
    where = f"auth.issuers.{issuer.issuer}.{field}"
    raise InvalidSettings([Detail(where, reason)], "key file") from None


async def fetch_jwks(url: str) -> bytes:
    """Return the body of an issuer's JWKS URL.

    Raises:
        ValueError: The status is not 200, or the body is over _MAX_JWKS_BYTES.
        TimeoutError: The whole exchange takes longer than _FETCH_TIMEOUT_S.
        httpx.HTTPError: The issuer cannot be reached.

    """
    import httpx  # noqa: PLC0415  loaded only for issuers with a JWKS URL

    content = b""
    async with (
        # httpx's own timeout starts anew with every chunk.
        asyncio.timeout(_FETCH_TIMEOUT_S),
        httpx.AsyncClient(
            timeout=_FETCH_TIMEOUT_S, follow_redirects=False, mounts=proxy_bypass(url)
        ) as client,
        client.stream("GET", url) as response,
    ):
        if response.status_code != httpx.codes.OK:
            raise ValueError(f"status {response.status_code}")
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > _MAX_JWKS_BYTES:
                raise ValueError("too large")
    return content
