"""`kaiten api-key`: create, list and revoke API keys."""

import json
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.options import (
    JsonOption,
    LifetimeOption,
    ScopesOption,
    SubjectOption,
    check_scopes,
    check_subject,
    parse_lifetime,
)
from kaiten.settings.loader import load_settings
from server.credential_admin import create_api_key, list_api_keys, revoke_api_key

api_key = typer.Typer(
    help="Manage API keys, for callers that cannot fetch tokens.", no_args_is_help=True
)


@api_key.command()
def create(subject: SubjectOption, scopes: ScopesOption, ttl: LifetimeOption = "90d") -> None:
    """Print a new API key alone on standard output; only its hash is stored.

    Example: kaiten api-key create --subject nightly-job --scope predict --ttl 90d
    """
    lifetime = parse_lifetime(ttl)
    check_scopes(scopes)
    typer.echo(create_api_key(load_settings(), check_subject(subject), scopes, lifetime))


@api_key.command(name="list")
def list_keys(*, as_json: JsonOption = False) -> None:
    """List the valid API keys, without their secrets.

    Example: kaiten api-key list
    """
    api_keys = list_api_keys(load_settings())
    if as_json:
        rows = {key_id: key.model_dump(exclude={"digest"}) for key_id, key in api_keys.items()}
        typer.echo(json.dumps(rows))
        return
    table = Table("id", "subject", "scopes", "expires", box=SIMPLE, pad_edge=False)
    for key_id, key in api_keys.items():
        expires = f"{datetime.fromtimestamp(key.expires_at, UTC):%Y-%m-%d %H:%M} UTC"
        table.add_row(*map(escape, (key_id, key.subject, " ".join(key.scopes), expires)))
    Console().print(table if api_keys else "No API keys.")


@api_key.command()
def revoke(
    key: Annotated[
        str, typer.Argument(help="The id of the API key (see kaiten api-key list), or the key.")
    ],
) -> None:
    """Revoke one API key.

    Example: kaiten api-key revoke 0f2a9c81d0be4c3a
    """
    typer.echo(revoke_api_key(load_settings(), key))
