"""`kaiten token`: make a token for a caller."""

import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated

import jwt
import typer

from kaiten.sections import Auth
from kaiten.settings import load_settings
from kaiten.signing import ALGORITHM, signing_secret
from kaiten.tags import NAME_PATTERN

_SCOPE = re.compile(rf"predict(:{NAME_PATTERN})?|feedback|ops|admin")
_TTL = re.compile(r"(\d+)([smhd])")


class _Unit(StrEnum):
    s = "seconds"
    m = "minutes"
    h = "hours"
    d = "days"


def token(
    subject: Annotated[str, typer.Option(help="Who will call: a user or a service.")],
    scope: Annotated[
        list[str],
        typer.Option(help="predict, predict:NAME, feedback, ops or admin; may be repeated."),
    ],
    ttl: Annotated[str, typer.Option(help="How long it holds, such as 30m, 1h or 7d.")] = "1h",
) -> None:
    """Print a token alone on standard output.

    Example: kaiten token --subject alice --scope predict --ttl 1h
    """
    if not subject.strip():
        raise typer.BadParameter("is empty", param_hint="--subject")
    settings = load_settings()
    secret = signing_secret(settings)
    typer.echo(mint(subject, _scopes(scope), _duration(ttl), settings.auth, secret.value))


def mint(subject: str, scopes: list[str], ttl: timedelta, settings: Auth, secret: str) -> str:
    """Return a signed token; its claims are those that the authentication middleware asks for."""
    now = datetime.now(UTC)
    claims = {
        "sub": subject,
        "scope": " ".join(scopes),
        "iss": settings.issuer,
        "aud": settings.audience,
        "iat": now,
        "exp": now + ttl,
    }
    return jwt.encode(claims, secret, algorithm=ALGORITHM)


def _scopes(scopes: list[str]) -> list[str]:
    for scope in scopes:
        if not _SCOPE.fullmatch(scope):
            raise typer.BadParameter(
                f"{scope!r} is no scope; use predict, predict:NAME, feedback, ops or admin",
                param_hint="--scope",
            )
    return scopes


def _duration(text: str) -> timedelta:
    match = _TTL.fullmatch(text)
    if match is None or int(match[1]) == 0:
        raise typer.BadParameter(
            f"{text!r} is no duration; write 30m, 1h or 7d", param_hint="--ttl"
        )
    try:
        duration = timedelta(**{_Unit[match[2]]: int(match[1])})
        _ = datetime.now(UTC) + duration
    except OverflowError:
        raise typer.BadParameter(f"{text!r} is too long", param_hint="--ttl") from None
    return duration
