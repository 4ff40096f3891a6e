"""Mints tokens with the server's own secret."""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import jwt

from gateway.auth.signing_secret import ALGORITHM, signing_secret
from kaiten.settings.loader import Settings
from kaiten.settings.models import AuthSettings


def mint_token(settings: Settings, subject: str, scopes: Sequence[str], lifetime: timedelta) -> str:
    """Return a token that is signed with the secret in force.

    Raises:
        InvalidSettings: There is no secret, because only the issuers of auth.issuers sign tokens.

    """
    return mint(subject, scopes, lifetime, settings.auth, signing_secret(settings).value)


def mint(
    subject: str, scopes: Sequence[str], lifetime: timedelta, settings: AuthSettings, secret: str
) -> str:
    """Return a token that is signed with this secret; Verifier requires these claims."""
    now = datetime.now(UTC)
    claims = {
        "sub": subject,
        "scope": " ".join(scopes),
        "iss": settings.issuer,
        "aud": settings.audience,
        "iat": now,
        "exp": now + lifetime,
        # Allows this token to be revoked alone.
        "jti": uuid.uuid4().hex,
    }
    return jwt.encode(claims, secret, algorithm=ALGORITHM)
