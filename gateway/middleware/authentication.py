"""Verifies the bearer token of every route that asks for a scope."""

import ipaddress
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NoReturn

import jwt
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.access import AccessTable
from gateway.security_log import tell
from kaiten.context import Principal, current
from kaiten.errors import LoopbackOnly, Unauthenticated
from kaiten.sections import Auth
from kaiten.signing import ALGORITHM, SigningSecret

_MAX_TOKEN_CHARS = 8192
# A caller sends one token many times, and verifying it costs as much as the rest of the edge.
_MAX_VERIFIED = 1024
_REQUIRED_CLAIMS = ["exp", "iss", "aud", "sub"]


@dataclass(frozen=True, slots=True)
class _Verified:
    """What a token was found to say, and the epoch second from which it no longer holds."""

    principal: Principal
    expires_at: int


class AuthenticationMiddleware:
    """Puts the token's principal into the context, if it has the route's scope.

    Whether that holds for the model asked for, the handler checks.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Auth,
        secret: SigningSecret,
        table: AccessTable,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._app = app
        self._settings = settings
        self._secret = secret
        self._table = table
        self._clock = clock
        # Refused tokens raise, and what raises is not remembered.
        self._verified = lru_cache(maxsize=_MAX_VERIFIED)(self._decode)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        access = self._table.of(scope["path"])
        if access is not None and access.scope is not None:
            self._check_client(scope)
            principal = self._verify(Headers(scope=scope).get("Authorization", ""))
            # Known before it is refused: the log is to tell who it was.
            current().principal = principal
            principal.require(access.scope)
        await self._app(scope, receive, send)

    def _check_client(self, scope: Scope) -> None:
        """Refuse callers from elsewhere while anyone on this machine can read the secret's file."""
        client = scope.get("client")
        if self._secret.development and not (client and _is_loopback(client[0])):
            raise LoopbackOnly

    def _verify(self, authorization: str) -> Principal:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated(token_sent=False)
        if len(token) > _MAX_TOKEN_CHARS:
            self._reject("TooLong")
        verified = self._verified(token)
        if self._clock() >= verified.expires_at:
            self._reject(jwt.ExpiredSignatureError.__name__)
        return verified.principal

    def _reject(self, fault: str) -> NoReturn:
        # The kind of fault is for the operator; the caller is told nothing that helps guessing.
        tell("token_rejected", fault)
        raise Unauthenticated(token_sent=True)

    def _decode(self, token: str) -> _Verified:
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
        # Some versions let through what deep nesting in a token's header does to json.
        except (jwt.PyJWTError, RecursionError) as error:
            self._reject(type(error).__name__)
        principal = Principal(str(claims["sub"]), _scopes(claims))
        return _Verified(principal, int(claims["exp"]) + self._settings.leeway_s)


def _scopes(claims: Mapping[str, object]) -> frozenset[str]:
    """Return the scopes of the ``scope`` claim (RFC 8693: one string, separated by spaces)."""
    scope = claims.get("scope", "")
    return frozenset(scope.split()) if isinstance(scope, str) else frozenset()


@lru_cache(maxsize=1024)
def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
