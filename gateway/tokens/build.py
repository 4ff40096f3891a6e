"""Builds the parts that tell who calls, from the settings."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import structlog

from gateway.tokens.authenticator import Authenticator
from gateway.tokens.jwks import Fetch, JwksKeys
from gateway.tokens.keys import Key, from_pem, from_secret
from gateway.tokens.stores import FileCredentials, credential_store, host_copy
from gateway.tokens.verifier import Keys, OneKey, TrustedIssuer, Verifier
from gateway.tokens.watch import CredentialsObserver, CredentialsWatch, Places
from kaiten.errors import Detail, InvalidSettings, StateUnavailable
from kaiten.loopback import proxy_bypass
from kaiten.sections import Algorithm, Auth, Issuer, Jwks, check_secret
from kaiten.settings import Settings, read_key_file
from kaiten.signing import ALGORITHM, SigningSecret

logger = structlog.get_logger(__name__)
_MAX_JWKS_BYTES = 1 << 20
_FETCH_TIMEOUT_S = 5.0
_PATIENCE_S = 10.0
_ALL = frozenset(get_args(Algorithm))


@dataclass(frozen=True, slots=True)
class Tokens:
    """Who tells who calls, and what has to run beside it."""

    authenticator: Authenticator
    watch: CredentialsWatch
    jwks: tuple[JwksKeys, ...]

    def start(self) -> list[asyncio.Task[None]]:
        """Keep keys and credentials current; the tasks run until they are cancelled.

        They end by themselves for no reason that anybody knows; the log tells if one does.
        """
        # Once here: no request is to meet a worker that has not read who was revoked.
        self.watch.poll()
        running: list[Coroutine[Any, Any, None]] = [self.watch.keep_current()]
        running += [each.keep_fresh() for each in self.jwks]
        tasks = [asyncio.create_task(each) for each in running]
        for task in tasks:
            task.add_done_callback(_tell_end)
        return tasks


def _tell_end(task: "asyncio.Task[None]") -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        logger.critical("tokens_not_kept_current", error=type(error).__name__)


def build(
    settings: Settings,
    secret: SigningSecret | None,
    fetch: Fetch | None = None,
    observer: CredentialsObserver | None = None,
) -> Tokens:
    """Return the parts; InvalidSettings names a key that can not be used."""
    auth = settings.auth
    issuers = {each.issuer: _trusted(each, auth.jwks, fetch or fetch_jwks) for each in auth.issuers}
    if secret is not None:
        key = OneKey(Key(secret.value, frozenset({ALGORITHM})))
        issuers[auth.issuer] = TrustedIssuer(auth.issuer, auth.audience, key, _ALL)
    copy = settings.state.credentials_copy
    watch = CredentialsWatch(_places(settings, copy), auth.credentials_poll_s, observer)
    return Tokens(
        Authenticator(Verifier(issuers, auth.leeway_s), watch.current),
        watch,
        tuple(each.keys for each in issuers.values() if isinstance(each.keys, JwksKeys)),
    )


def guard_credentials(settings: Settings, copy: Path) -> None:
    """Keep ``copy``, from which workers learn what others knew, for as long as this process lives.

    Called once by the process that starts the workers.
    """
    poll_s = settings.auth.credentials_poll_s
    places = _places(settings, copy)
    if settings.state.redis_url is not None and _hold_nothing(places):
        # A Redis that has just lost its list is given it by the workers of other hosts.
        time.sleep(min(2 * poll_s, _PATIENCE_S))
    watch = CredentialsWatch(places, poll_s, guards=True)
    watch.poll()
    watch.keep_current_on_a_thread()


def _places(settings: Settings, copy: Path | None) -> Places:
    return Places(
        credential_store(settings.home, settings.state),
        host_copy(settings.home, settings.state),
        None if copy is None else FileCredentials(copy, private=True),
    )


def _hold_nothing(places: Places) -> bool:
    """Tell whether a store that can be read holds no list, and this host has no copy either."""
    with suppress(StateUnavailable):
        return places.store.read() is None and (places.host is None or places.host.read() is None)
    return False


def check_keys(auth: Auth) -> None:
    """Raise InvalidSettings for a key file that can not be used; nothing is fetched."""
    for issuer in auth.issuers:
        _trusted(issuer, auth.jwks, fetch_jwks)


def _trusted(issuer: Issuer, jwks: Jwks, fetch: Fetch) -> TrustedIssuer:
    allowed = frozenset(issuer.algorithms) or _ALL
    keys = _keys(issuer, jwks, fetch)
    if isinstance(keys, OneKey) and not keys.algorithms & allowed:
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


def _keys(issuer: Issuer, jwks: Jwks, fetch: Fetch) -> Keys:
    if issuer.jwks_url is not None:
        return JwksKeys(issuer.jwks_url, jwks, fetch)
    if issuer.public_key_file is not None:
        return OneKey(_from_file(issuer, "public_key_file", from_pem))
    return OneKey(_from_file(issuer, "secret_file", _from_secret_file))


def _from_secret_file(content: bytes) -> Key:
    secret = content.decode().strip()
    check_secret(secret)
    return from_secret(secret)


def _from_file(issuer: Issuer, field: str, read: Callable[[bytes], Key]) -> Key:
    path: Path = getattr(issuer, field)
    try:
        return read(read_key_file(path))
    except OSError as error:
        reason = f"{path} can not be read: {error.strerror}"
    except ValueError as error:
        reason = f"{path} {error}"
    where = f"auth.issuers.{issuer.issuer}.{field}"
    raise InvalidSettings([Detail(where, reason)], "key file") from None


async def fetch_jwks(url: str) -> bytes:
    """Return what an issuer publishes; an error for all but a plain 200 of up to a mebibyte."""
    import httpx  # noqa: PLC0415  who has no such issuer needs no client

    content = b""
    async with (
        # Around all of it: httpx's own begins anew with every byte that trickles in.
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
