"""`kaiten revoke`: revoke every credential of a subject."""

import typer

from cli.options import SubjectOption, check_subject
from cli.token import IssuerOption, check_issuer
from gateway.auth.credentials import ISSUER
from kaiten.settings.loader import load_settings
from server.credential_admin import revoke_subject


def revoke(subject: SubjectOption, issuer: IssuerOption = None) -> None:
    """Revoke all tokens and API keys that were issued to a subject until now.

    With --issuer, only the tokens of that issuer; --issuer api-key means the API keys.
    Example: kaiten revoke --subject alice
    """
    check_subject(subject)
    settings = load_settings()
    name = check_issuer(settings.auth, issuer, ISSUER)
    typer.echo(revoke_subject(settings, subject, [name] if issuer else [name, ISSUER]))
