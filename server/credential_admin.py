"""Creates and revokes credentials for an operator, and records each action in the audit log."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from gateway.auth.credential_stores import FILE, credential_store, host_copy
from gateway.auth.credentials import (
    ISSUER,
    MAX_LIFETIME,
    ApiKey,
    Credentials,
    key_id_of,
    new_api_key,
)
from gateway.auth.minting import mint_token
from gateway.auth.signing_secret import configured_secret, find_pseudonyms, secret_in_force
from gateway.security_log import log_operator_action
from kaiten.context import Principal
from kaiten.errors import SetupError, StateUnavailable
from kaiten.pseudonyms import Pseudonyms
from kaiten.settings.loader import Settings
from kaiten.settings.models import AuthSettings
from kaiten.settings.secrets import DEVELOPMENT_SECRET_FILE
from lifecycle.audit_log import current_operator
from monitors.logging.setup import add_audit_file

_SMOKE_TOKEN_LIFETIME = timedelta(minutes=5)


def mint_smoke_token(settings: Settings) -> str:
    """Return a token for the smoke checks, signed with the secret in force on this machine.

    Raises:
        SetupError: There is no secret; none is created, because the deployment would not accept it.

    """
    if not _has_secret(settings):
        raise SetupError(
            "There is no token, and no signing secret here to create one with. Pass a token with "
            "the scopes predict and ops by --token-file, or set KAITEN_AUTH__SECRET to the "
            "deployment's secret."
        )
    return mint_token(settings, "smoke", ["predict", "ops"], _SMOKE_TOKEN_LIFETIME)


def create_api_key(
    settings: Settings, subject: str, scopes: Sequence[str], lifetime: timedelta
) -> str:
    """Create an API key and return it; only its hash is stored."""
    key_id, text, api_key = new_api_key(subject, tuple(scopes), datetime.now(UTC) + lifetime)
    _change(settings, lambda credentials: credentials.with_api_key(key_id, api_key))
    _log("api_key_created", settings, api_key.principal, key_id=key_id, scopes=tuple(scopes))
    return text


def list_api_keys(settings: Settings) -> Mapping[str, ApiKey]:
    """Return the valid API keys by their ids."""
    credentials = credential_store(settings.home, settings.state).read() or Credentials()
    return credentials.without_expired(time.time()).api_keys


def revoke_api_key(settings: Settings, key: str) -> str:
    """Revoke an API key, given by its id or by itself; return a confirmation.

    Raises:
        SetupError: There is no such key.

    """
    # A key that leaked is at hand without the list of ids.
    key_id = key_id_of(key) or key
    owner: list[Principal] = []

    def without_key(credentials: Credentials) -> Credentials:
        if key_id not in credentials.api_keys:
            # The value is not quoted: it may be another secret.
            raise SetupError(
                f"{_place(settings)} holds no API key with this id. List the ids with "
                "`kaiten api-key list`. If Redis has just lost its data, try again in a moment: "
                "workers write it back."
            )
        owner[:] = [credentials.api_keys[key_id].principal]
        return credentials.without_api_key(key_id)

    _change(settings, without_key)
    _log("revoked", settings, owner[0], what="api_key", key_id=key_id)
    return _confirmation(settings, f"Revoked the API key {key_id}.")


def revoke_token(settings: Settings, issuer: str, jti: str) -> str:
    """Revoke one token of an issuer by its id; return a confirmation."""
    until = int((datetime.now(UTC) + MAX_LIFETIME).timestamp())
    entry = {f"{issuer}|{jti}": until}
    _change(settings, lambda credentials: credentials.with_revoked(tokens=entry))
    _log("revoked", settings, None, what="token", issuer=issuer, token_id=jti)
    return _confirmation(settings, f"Revoked the token of {issuer}.")


def revoke_subject(settings: Settings, subject: str, issuers: Sequence[str]) -> str:
    """Revoke what these issuers have issued to a subject until now; return a confirmation."""
    # The clock of an issuer may be ahead by as much as Verifier accepts.
    leeway_s = settings.auth.leeway_s
    until = int(time.time()) + leeway_s
    owners = [Principal(subject, frozenset(), issuer) for issuer in issuers]
    entries = {owner.identity: until for owner in owners}
    _change(settings, lambda credentials: credentials.with_revoked(subjects=entries))
    for owner in owners:
        _log("revoked", settings, owner, what="subject", issuer=owner.issuer)
    return _confirmation(
        settings,
        f"Revoked everything that was issued to {subject} until now ({', '.join(issuers)}), and "
        f"tokens of the next {leeway_s} s, because the issuer's clock may be ahead.",
    )


def pseudonyms_of_subject(
    settings: Settings, subject: str, issuer: str | None = None
) -> dict[str, str]:
    """Return the pseudonym of a subject in the servers' logs, by ``issuer|subject``.

    There is one for each issuer of credentials that is accepted here, or that of ``issuer`` alone.

    Raises:
        SetupError: The key of the servers' pseudonyms is not known here.

    """
    # A secret that is created now is not the one that the servers used.
    needs_secret = not (settings.logging.pseudonym_key or settings.auth.issuers)
    if needs_secret and not _has_secret(settings):
        raise SetupError(
            "There is no signing secret here, so the servers' pseudonyms are not known. Run this "
            "command with the server's environment, or set KAITEN_AUTH__SECRET or "
            "KAITEN_LOGGING__PSEUDONYM_KEY to the server's."
        )
    pseudonyms = _pseudonyms(settings)
    if pseudonyms is None:
        raise SetupError(
            "Pseudonyms change with each start, because neither logging.pseudonym_key nor a "
            "signing secret is set here. If the servers have a signing secret, run this command "
            "with their environment. Otherwise set KAITEN_LOGGING__PSEUDONYM_KEY, for example to "
            "the output of `openssl rand -hex 32`, and restart the servers; this command then "
            "finds the pseudonyms of later lines."
        )
    local_issuer = own_issuer(settings.auth)
    foreign = (trusted.issuer for trusted in settings.auth.issuers)
    issuers = [issuer] if issuer else [*([local_issuer] if local_issuer else ()), *foreign, ISSUER]
    identities = [Principal(subject, frozenset(), name).identity for name in issuers]
    return {identity: pseudonyms.of(identity) for identity in identities}


def own_issuer(auth: AuthSettings) -> str | None:
    """Return the issuer of the tokens that this server signs; None if it signs none."""
    return auth.issuer if auth.secret or auth.secret_file or not auth.issuers else None


def _change(settings: Settings, change: Callable[[Credentials], Credentials]) -> None:
    """Change the stored credentials, and drop entries that expired long ago.

    If Redis has just lost its data, this host's copy is written back together with the change. The
    copy gets the change too, so that workers learn of it even if Redis loses it at once.
    """
    store = credential_store(settings.home, settings.state)
    copy, now, changed = host_copy(settings.home, settings.state), time.time(), Credentials()
    copied = None
    with suppress(StateUnavailable):
        copied = copy.read() if copy is not None else None

    def change_with_copy(stored: Credentials) -> Credentials:
        nonlocal changed
        changed = change(stored.merged(copied or Credentials(), now))
        return changed

    store.change(change_with_copy)
    if copy is not None and copied is not None:
        # Workers would write it a moment later anyway.
        with suppress(StateUnavailable):
            copy.merge(changed, now)


def _confirmation(settings: Settings, done: str) -> str:
    """Return the message that a change is recorded, and when workers apply it."""
    within = f"within {settings.auth.credentials_poll_s:g} s"
    return f"{done} Each worker that reaches {_place(settings)} applies it {within}."


def _place(settings: Settings) -> str:
    return "Redis (state.redis_url)" if settings.state.redis_url else str(settings.home / FILE)


def _log(event: str, settings: Settings, owner: Principal | None, **facts: object) -> None:
    """Log an action with the operator's account and the owner's pseudonym, as workers log it."""
    pseudonym = _pseudonym(settings, owner) if owner is not None else None
    add_audit_file(settings.audit_folder)
    log_operator_action(event, operator=current_operator(), subject=pseudonym, **facts)


def _pseudonym(settings: Settings, owner: Principal) -> str | None:
    """Return the pseudonym, or None if the workers' key is not known here."""
    with suppress(SetupError):
        pseudonyms = _pseudonyms(settings)
        return pseudonyms.of(owner.identity) if pseudonyms else None
    return None


def _pseudonyms(settings: Settings) -> Pseudonyms | None:
    """Return the pseudonyms that the workers use; None if each start has others."""
    secret = None if settings.logging.pseudonym_key else secret_in_force(settings)
    return find_pseudonyms(settings, secret)


def _has_secret(settings: Settings) -> bool:
    """Return whether there is a signing secret here, without creating one."""
    development_secret = settings.home / DEVELOPMENT_SECRET_FILE
    return configured_secret(settings) is not None or development_secret.exists()
