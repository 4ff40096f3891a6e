"""Tells who calls every route that asks for a scope, by a bearer token or an API key."""

import ipaddress
from dataclasses import dataclass
from functools import lru_cache

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.access import AccessTable
from gateway.auth.authenticator import Authenticator
from gateway.auth.verifier import TokenRejected
from gateway.security_log import log_event
from kaiten.context import Principal, current
from kaiten.errors import LoopbackOnly, Unauthenticated

_KEY_HEADER = "X-API-Key"


@dataclass(frozen=True, slots=True)
class Callers:
    """Who tells who calls, and whether only this machine may: anyone on it can read the secret."""

    authenticator: Authenticator
    loopback_only: bool


class AuthenticationMiddleware:
    """Puts the caller's principal into the context, if it has the route's scope.

    Whether that holds for the model asked for, the handler checks.
    """

    def __init__(
        self,
        app: ASGIApp,
        callers: Callers,
        table: AccessTable,
    ) -> None:
        self._app = app
        self._callers = callers
        self._table = table

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        access = self._table.of(scope["path"])
        if access is not None and access.scope is not None:
            self._check_client(scope)
            principal = await self._principal(Headers(scope=scope))
            # Known before it is refused: the log is to tell who it was.
            current().principal = principal
            principal.require(access.scope)
        await self._app(scope, receive, send)

    def _check_client(self, scope: Scope) -> None:
        """Refuse callers from elsewhere while anyone on this machine can read the secret's file."""
        client = scope.get("client")
        if self._callers.loopback_only and not (client and _is_loopback(client[0])):
            raise LoopbackOnly

    async def _principal(self, headers: Headers) -> Principal:
        try:
            return await self._callers.authenticator.authenticate(
                headers.getlist("Authorization"), headers.getlist(_KEY_HEADER)
            )
        except TokenRejected as error:
            # The kind of fault is for the operator; the caller is told nothing that helps guessing.
            # For the log's line: who still uses what was revoked.
            current().principal = error.principal
            log_event("token_rejected", error.fault)
            raise Unauthenticated(token_sent=True) from None


@lru_cache(maxsize=1024)
def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
