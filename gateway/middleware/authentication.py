"""Verifies the bearer token of every route that asks for a scope."""

import ipaddress
from collections.abc import Mapping

import jwt
import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.access import ROUTES
from kaiten.context import Principal, current
from kaiten.errors import LoopbackOnly, Unauthenticated
from kaiten.settings import Auth
from kaiten.signing import ALGORITHM, SigningSecret

logger = structlog.get_logger(__name__)
_MAX_TOKEN_CHARS = 8192
_REQUIRED_CLAIMS = ["exp", "iss", "aud", "sub"]


class AuthenticationMiddleware:
    """Puts the token's principal into the context, if it has the route's scope.

    Whether that holds for the model asked for, the handler checks.
    """

    def __init__(self, app: ASGIApp, settings: Auth, secret: SigningSecret) -> None:
        self._app = app
        self._settings = settings
        self._secret = secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        access = ROUTES.get(scope["path"])
        if access is not None and access.scope is not None:
            self._check_client(scope)
            principal = self._verify(Headers(scope=scope).get("Authorization", ""))
            principal.require(access.scope)
            current().principal = principal
        await self._app(scope, receive, send)

    def _check_client(self, scope: Scope) -> None:
        """Refuse callers from elsewhere while anyone on this machine can read the secret's file."""
        if self._secret.development and not _is_loopback(scope.get("client")):
            raise LoopbackOnly

    def _verify(self, authorization: str) -> Principal:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated(token_sent=False)
        if len(token) > _MAX_TOKEN_CHARS:
            raise Unauthenticated(token_sent=True)
        try:
            claims = jwt.decode(
                token,
                self._secret.value,
                algorithms=[ALGORITHM],
                issuer=self._settings.issuer,
                audience=self._settings.audience,
                leeway=self._settings.leeway_s,
                options={"require": _REQUIRED_CLAIMS},
            )
        except jwt.PyJWTError as error:
            # The kind of fault is for the operator; the caller is told nothing that helps guessing.
            logger.warning("token_rejected", fault=type(error).__name__)
            raise Unauthenticated(token_sent=True) from None
        return Principal(str(claims["sub"]), _scopes(claims))


def _scopes(claims: Mapping[str, object]) -> frozenset[str]:
    """Return the scopes of the ``scope`` claim (RFC 8693: one string, separated by spaces)."""
    scope = claims.get("scope", "")
    return frozenset(scope.split()) if isinstance(scope, str) else frozenset()


def _is_loopback(client: tuple[str, int] | None) -> bool:
    if client is None:
        return False
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
