"""`kaiten api-key` and `kaiten revoke`: keys that are issued here, and what no longer holds."""

import json
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.token import Scopes, Ttl, checked_scopes, duration, given_subject
from gateway.auth.credential_stores import FILE, credential_store, host_copy
from gateway.auth.credentials import ISSUER, Credentials, key_id_of, new_api_key
from gateway.auth.signing_secret import secret_in_force
from gateway.security_log import log_operator_action
from kaiten.context import Principal
from kaiten.errors import SetupError, StateUnavailable
from kaiten.pseudonyms import Pseudonyms, shared_key
from kaiten.settings.loader import Settings, load_settings
from kaiten.settings.models import AuthSettings
from lifecycle.operators import operator
from monitors.logging.setup import keep_acts

api_key = typer.Typer(help="Make and list API keys, for callers who can not fetch tokens.")
# Longer than any token of good manners holds; its entry is forgotten then.
_REMEMBERED = "400d"
_SOME_TOKEN = re.compile(r"eyJ[\w-]*\.[\w-]*\.[\w-]*")


@api_key.command()
def create(
    subject: Annotated[str, typer.Option(help="Who will call: a service, a job.")],
    scope: Scopes,
    ttl: Ttl = "90d",
) -> None:
    """Print a new API key alone on standard output. It is shown this once: only its hash is kept.

    Example: kaiten api-key create --subject nightly-job --scope predict --ttl 90d
    """
    expires_at = datetime.now(UTC) + duration(ttl)
    scopes = tuple(checked_scopes(scope))
    key_id, text, kept = new_api_key(given_subject(subject), scopes, expires_at)
    settings = load_settings()
    _change(settings, lambda known: known.with_api_key(key_id, kept))
    _tell("api_key_created", settings, kept.principal, key_id=key_id, scopes=scopes)
    typer.echo(text)


@api_key.command(name="list")
def list_keys(
    *, as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False
) -> None:
    """List the API keys that hold, without what would let anybody use one.

    Example: kaiten api-key list
    """
    settings = load_settings()
    stored = credential_store(settings.home, settings.state).read() or Credentials()
    known = stored.without_expired(time.time())
    if as_json:
        shown = {k: v.model_dump(exclude={"digest"}) for k, v in known.api_keys.items()}
        typer.echo(json.dumps(shown))
        return
    table = Table("id", "subject", "scopes", "expires", box=SIMPLE, pad_edge=False)
    for key_id, each in known.api_keys.items():
        expires = f"{datetime.fromtimestamp(each.expires_at, UTC):%Y-%m-%d %H:%M} UTC"
        table.add_row(*map(escape, (key_id, each.subject, " ".join(each.scopes), expires)))
    Console().print(table if known.api_keys else "No API keys.")


def revoke(
    jti: Annotated[str | None, typer.Option(help="The id of a token (its claim jti).")] = None,
    subject: Annotated[
        str | None, typer.Option(help="A subject: all that was issued to it by now is void.")
    ] = None,
    api_key_id: Annotated[
        str | None, typer.Option("--api-key", help="The id of an API key; see kaiten api-key list.")
    ] = None,
    issuer: Annotated[
        str | None, typer.Option(help="Whose token or subject it is; by default this service's.")
    ] = None,
) -> None:
    """Revoke a token, an API key, or all that a subject holds; workers know in a second.

    Example: kaiten revoke --subject alice
    """
    if sum(each is not None for each in (jti, subject, api_key_id)) != 1:
        raise SetupError("Say what to revoke: one of --jti, --subject and --api-key.")
    settings = load_settings()
    if api_key_id is not None:
        _revoke_api_key(settings, api_key_id)
    elif jti is not None:
        _revoke_token(settings, _issuer(settings.auth, issuer), jti)
    elif subject is not None:
        name = _issuer(settings.auth, issuer, ISSUER)
        # Who says no issuer means the caller, by whatever this service has given out.
        _revoke_subject(settings, [name] if issuer else [name, ISSUER], given_subject(subject))


def _revoke_api_key(settings: Settings, given: str) -> None:
    # Somebody who has found a key where it should not be has no list at hand.
    key_id = key_id_of(given) or given
    owner: list[Principal] = []

    def without(known: Credentials) -> Credentials:
        if key_id not in known.api_keys:
            # Not quoted: it may be a secret that was meant for elsewhere.
            raise SetupError(
                f"{_place(settings)} has no API key of this id; kaiten api-key list shows the ids. "
                "If it has just lost its list, try again in a moment: workers write it back."
            )
        owner[:] = [known.api_keys[key_id].principal]
        return known.without_api_key(key_id)

    _change(settings, without)
    _tell("revoked", settings, owner[0], what="api_key", key_id=key_id)
    _confirm(settings, f"Revoked the API key {key_id}.")


def _revoke_token(settings: Settings, issuer: str, jti: str) -> None:
    if not jti.strip() or _SOME_TOKEN.fullmatch(jti):
        raise typer.BadParameter(
            "give a token's claim jti, not the token and not nothing", param_hint="--jti"
        )
    until = int((datetime.now(UTC) + duration(_REMEMBERED)).timestamp())
    _change(settings, lambda known: known.with_revoked(tokens={f"{issuer}|{jti}": until}))
    _tell("revoked", settings, None, what="token", issuer=issuer, token_id=jti)
    _confirm(settings, f"Revoked that token of {issuer}.")


def _revoke_subject(settings: Settings, issuers: Iterable[str], subject: str) -> None:
    # The clock of an issuer may be ahead by as much as Verifier accepts.
    leeway_s = settings.auth.leeway_s
    until = int(time.time()) + leeway_s
    owners = [Principal(subject, frozenset(), each) for each in issuers]
    instants = {each.identity: until for each in owners}
    _change(settings, lambda known: known.with_revoked(subjects=instants))
    for owner in owners:
        _tell("revoked", settings, owner, what="subject", issuer=owner.issuer)
    _confirm(
        settings,
        f"Revoked what {subject} was issued by now ({', '.join(issuers)}), and tokens of the next "
        f"{leeway_s} s, as their issuer's clock may be ahead.",
    )


def _issuer(auth: AuthSettings, given: str | None, *others: str) -> str:
    """Return whose token or subject is meant: a slip here would revoke nothing, and say it did."""
    own = [auth.issuer] if auth.secret or auth.secret_file or not auth.issuers else []
    known = [*own, *(each.issuer for each in auth.issuers), *others]
    if given is None and own:
        return auth.issuer
    if given not in known:
        reason = f"{given!r} is no issuer here" if given else "no tokens are made here"
        raise typer.BadParameter(f"{reason}; name one of {', '.join(known)}", param_hint="--issuer")
    return given


def _change(settings: Settings, change: Callable[[Credentials], Credentials]) -> None:
    """Change the document, and let go of what expired long ago.

    A Redis that has just lost it gets what this host's workers knew, and the change with it; they
    know of the change even if Redis loses it before they have read it.
    """
    store = credential_store(settings.home, settings.state)
    copy, now, changed = host_copy(settings.home, settings.state), time.time(), Credentials()
    copied = None
    with suppress(StateUnavailable):
        copied = copy.read() if copy is not None else None

    def with_copy(stored: Credentials) -> Credentials:
        nonlocal changed
        changed = change(stored.merged(copied or Credentials(), now))
        return changed

    store.change(with_copy)
    if copy is not None and copied is not None:
        # Workers write it anyway, a moment later.
        with suppress(StateUnavailable):
            copy.merge(changed, now)


def _confirm(settings: Settings, done: str) -> None:
    """Say what was recorded, and when it holds: this command asks no worker."""
    within = f"within {settings.auth.credentials_poll_s:g} s"
    typer.echo(f"{done} Each worker that reaches {_place(settings)} applies it {within}.")


def _place(settings: Settings) -> str:
    return "Redis (state.redis_url)" if settings.state.redis_url else str(settings.home / FILE)


def _tell(event: str, settings: Settings, owner: Principal | None, **facts: object) -> None:
    """Log what was done, by which account, and whom it is about by the pseudonym in other lines."""
    pseudonym = _pseudonym(settings, owner) if owner is not None else None
    keep_acts(settings.logging.folder or settings.home)
    log_operator_action(event, operator=operator(), subject=pseudonym, **facts)


def _pseudonym(settings: Settings, owner: Principal) -> str | None:
    """Return it, where this command knows the workers' key: not worth failing for."""
    with suppress(SetupError):
        secret = secret_in_force(settings)
        key = shared_key(settings.logging, secret.value if secret else None)
        return Pseudonyms(key).of(owner.identity) if key else None
    return None
