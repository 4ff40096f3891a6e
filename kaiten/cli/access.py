"""`kaiten api-key` and `kaiten revoke`: keys that are issued here, and what no longer holds."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.tokens.credentials import ISSUER, Credentials, new_api_key
from gateway.tokens.stores import credential_store
from kaiten.cli.token import Scopes, Ttl, checked_scopes, duration, given_subject
from kaiten.errors import SetupError
from kaiten.settings import load_settings

api_key = typer.Typer(help="Make and list API keys, for callers who can not fetch tokens.")
# Longer than any token of good manners holds; its entry is forgotten then.
_REMEMBERED = "400d"


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
    _change(lambda known: known.model_copy(update={"api_keys": {**known.api_keys, key_id: kept}}))
    typer.echo(text)


@api_key.command(name="list")
def list_keys(
    *, as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False
) -> None:
    """List the API keys that hold, without what would let anybody use one.

    Example: kaiten api-key list
    """
    settings = load_settings()
    known = credential_store(settings.home, settings.state).read().without_expired(time.time())
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
    """Revoke a token, an API key, or all that a subject holds; every worker knows in a second.

    Example: kaiten revoke --subject alice
    """
    if sum(each is not None for each in (jti, subject, api_key_id)) != 1:
        raise SetupError("Say what to revoke: one of --jti, --subject and --api-key.")
    name = issuer or load_settings().auth.issuer
    if api_key_id is not None:
        _change(lambda known: _without_key(known, api_key_id))
    elif jti is not None:
        until = int((datetime.now(UTC) + duration(_REMEMBERED)).timestamp())
        _change(partial(_with, field="revoked_tokens", key=f"{name}|{jti}", instant=until))
    else:
        now = int(time.time())
        for each in [name] if issuer else [name, ISSUER]:
            _change(partial(_with, field="revoked_subjects", key=f"{each}|{subject}", instant=now))
    typer.echo("Revoked.")


def _with(known: Credentials, field: str, key: str, instant: int) -> Credentials:
    return known.model_copy(update={field: {**getattr(known, field), key: instant}})


def _without_key(known: Credentials, key_id: str) -> Credentials:
    if key_id not in known.api_keys:
        raise SetupError(f"There is no API key {key_id}; see kaiten api-key list.")
    kept = {name: each for name, each in known.api_keys.items() if name != key_id}
    return known.model_copy(update={"api_keys": kept})


def _change(change: Callable[[Credentials], Credentials]) -> None:
    """Change the document, and let go of what has expired."""
    settings = load_settings()
    store = credential_store(settings.home, settings.state)
    store.change(lambda known: change(known.without_expired(time.time())))
