"""`kaiten token`: create and revoke tokens."""

import re
from typing import Annotated

import typer

from cli.options import (
    LifetimeOption,
    ScopesOption,
    SubjectOption,
    check_scopes,
    check_subject,
    parse_lifetime,
)
from gateway.auth.minting import mint_token
from kaiten.settings.loader import load_settings
from kaiten.settings.models import AuthSettings
from server.credential_admin import own_issuer, revoke_token

_JWT = re.compile(r"eyJ[\w-]*\.[\w-]*\.[\w-]*")
IssuerOption = Annotated[
    str | None, typer.Option(help="The issuer of the token or subject; by default this server.")
]
token = typer.Typer(help="Create and revoke tokens.", no_args_is_help=True)


@token.command()
def create(subject: SubjectOption, scopes: ScopesOption, ttl: LifetimeOption = "1h") -> None:
    """Print a new token alone on standard output.

    Example: kaiten token create --subject alice --scope predict --ttl 1h
    """
    check_subject(subject)
    check_scopes(scopes)
    typer.echo(mint_token(load_settings(), subject, scopes, parse_lifetime(ttl)))


@token.command()
def revoke(
    jti: Annotated[str, typer.Argument(help="The token's id, its claim jti; not the token.")],
    issuer: IssuerOption = None,
) -> None:
    """Revoke one token by its id.

    Example: kaiten token revoke 3f2504e04f8941d39a0c0305e82c3301
    """
    if not jti.strip() or _JWT.fullmatch(jti):
        # The value is not quoted: it may be a token that is still valid.
        raise typer.BadParameter("give the token's claim jti, not the token", param_hint="JTI")
    settings = load_settings()
    typer.echo(revoke_token(settings, check_issuer(settings.auth, issuer), jti))


def check_issuer(auth: AuthSettings, issuer: str | None, *extra_issuers: str) -> str:
    """Return the issuer to revoke for: the named one, or this server if it signs tokens.

    An issuer that this server does not accept is an error, because revoking for it would report
    success and revoke nothing.
    """
    local_issuer = own_issuer(auth)
    if issuer is None and local_issuer is not None:
        return local_issuer
    issuers = [
        *([local_issuer] if local_issuer else ()),
        *(trusted.issuer for trusted in auth.issuers),
        *extra_issuers,
    ]
    if issuer is None or issuer not in issuers:
        reason = f"{issuer!r} is not an issuer here" if issuer else "this server signs no tokens"
        message = f"{reason}; name one of {', '.join(issuers)}"
        raise typer.BadParameter(message, param_hint="--issuer")
    return issuer
