"""`kaiten token`: make a token for a caller."""

import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated

import typer

from gateway.auth.minting import mint
from gateway.auth.signing_secret import signing_secret
from kaiten.settings.loader import load_settings
from kaiten.settings.models import SCOPE

_SCOPE = re.compile(SCOPE)
_SCOPES = "predict, predict:NAME, feedback, feedback:NAME, ops or admin"
Scopes = Annotated[
    list[str],
    typer.Option(help=f"{_SCOPES}; may be repeated."),
]
Ttl = Annotated[str, typer.Option(help="How long it holds, such as 30m, 1h or 7d.")]
_TTL = re.compile(r"(\d+)([smhd])")


class _Unit(StrEnum):
    s = "seconds"
    m = "minutes"
    h = "hours"
    d = "days"


def token(
    subject: Annotated[str, typer.Option(help="Who will call: a user or a service.")],
    scope: Scopes,
    ttl: Ttl = "1h",
) -> None:
    """Print a token alone on standard output.

    Example: kaiten token --subject alice --scope predict --ttl 1h
    """
    given_subject(subject)
    settings = load_settings()
    secret = signing_secret(settings)
    typer.echo(mint(subject, checked_scopes(scope), duration(ttl), settings.auth, secret.value))


def given_subject(subject: str) -> str:
    """Return the subject, unless it is none."""
    if not subject.strip():
        raise typer.BadParameter("is empty", param_hint="--subject")
    return subject


def checked_scopes(scopes: list[str]) -> list[str]:
    """Return the scopes, each of which must be one."""
    for scope in scopes:
        if not _SCOPE.fullmatch(scope):
            raise typer.BadParameter(
                f"{scope!r} is no scope; use {_SCOPES}",
                param_hint="--scope",
            )
    return scopes


def duration(text: str, option: str = "--ttl") -> timedelta:
    """Return how long 30m, 1h or 7d is."""
    match = _TTL.fullmatch(text)
    if match is None or int(match[1]) == 0:
        raise typer.BadParameter(f"{text!r} is no duration; write 30m, 1h or 7d", param_hint=option)
    try:
        found = timedelta(**{_Unit[match[2]]: int(match[1])})
        _ = datetime.now(UTC) + found
    except OverflowError:
        raise typer.BadParameter(f"{text!r} is too long", param_hint=option) from None
    return found
