"""Mints tokens with the server's own secret."""

import uuid
from datetime import UTC, datetime, timedelta

import jwt

from gateway.auth.signing_secret import ALGORITHM
from kaiten.settings.models import AuthSettings


def mint(
    subject: str, scopes: list[str], ttl: timedelta, settings: AuthSettings, secret: str
) -> str:
    """Return a signed token; its claims are those that the authentication middleware asks for."""
    now = datetime.now(UTC)
    claims = {
        "sub": subject,
        "scope": " ".join(scopes),
        "iss": settings.issuer,
        "aud": settings.audience,
        "iat": now,
        "exp": now + ttl,
        # By which it can be revoked alone.
        "jti": uuid.uuid4().hex,
    }
    return jwt.encode(claims, secret, algorithm=ALGORITHM)
