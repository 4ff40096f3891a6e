"""`kaiten pseudonym`: find the lines of a subject in the logs."""

import json
from typing import Annotated

import typer

from cli.options import JsonOption, SubjectOption, check_subject
from cli.token import check_issuer
from gateway.auth.credentials import ISSUER
from kaiten.settings.loader import load_settings
from server.credential_admin import pseudonyms_of_subject


def pseudonym(
    subject: SubjectOption,
    issuer: Annotated[
        str | None, typer.Option(help="The issuer that knows the subject; by default all.")
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Print the pseudonyms that stand for a subject in the logs, one for each issuer.

    Run it with the environment of the servers. A server keeps the key of its start, even if the
    last signing secret has changed since. The issuer of API keys is api-key.
    Example: kaiten pseudonym --subject alice
    """
    check_subject(subject)
    settings = load_settings()
    name = check_issuer(settings.auth, issuer, ISSUER) if issuer else None
    pseudonyms = pseudonyms_of_subject(settings, subject, name)
    if as_json:
        typer.echo(json.dumps(pseudonyms))
        return
    for identity, value in pseudonyms.items():
        typer.echo(f"{value}  {identity}")
