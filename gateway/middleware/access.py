"""Lets in only requests for known routes, from callers with the route's scope."""

import ipaddress
from dataclasses import dataclass
from functools import lru_cache

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.auth.authenticator import Authenticator
from gateway.auth.verifier import TokenRejected
from gateway.exchange import Exchange, exchange_of
from gateway.security_log import log_event
from kaiten.context import Principal
from kaiten.errors import LoopbackOnly, MethodNotAllowed, Unauthenticated, UnknownRoute
from kaiten.model_kinds import kind_of_path

_KEY_HEADER = "X-API-Key"


@dataclass(frozen=True, slots=True)
class Callers:
    """How callers are authenticated.

    ``loopback_only``: callers on other machines are rejected, as anyone on this one can read the
    secret.
    """

    authenticator: Authenticator
    loopback_only: bool


class AccessMiddleware:
    """Puts the caller's principal into the exchange, if it has the route's scope.

    Whether that scope is for the model asked for, the prediction handler checks.

    Raises:
        UnknownRoute: No route has that path.
        MethodNotAllowed: The path has no route for the method.
        LoopbackOnly: The caller is on another machine, and the development secret is in force.
        Unauthenticated: There is no valid credential.
        Forbidden: The caller lacks the route's scope.

    """

    def __init__(self, app: ASGIApp, callers: Callers) -> None:
        self._app = app
        self._callers = callers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        self._check_route(exchange, scope["path"])
        spec = exchange.spec
        if spec is not None and spec.scope is not None:
            self._check_client(exchange)
            principal = await self._principal(exchange, Headers(scope=scope))
            # Set before it is rejected: the log names the subject.
            exchange.principal = principal
            principal.require(spec.scope)
        await self._app(scope, receive, send)

    @staticmethod
    def _check_route(exchange: Exchange, path: str) -> None:
        match = exchange.match
        if match is None:
            kind = kind_of_path(path)
            raise UnknownRoute(kind.refusal if kind else "")
        if not match.is_allowed:
            raise MethodNotAllowed(match.allowed)

    def _check_client(self, exchange: Exchange) -> None:
        if self._callers.loopback_only and not _is_loopback(exchange.client or ""):
            raise LoopbackOnly

    async def _principal(self, exchange: Exchange, headers: Headers) -> Principal:
        tokens, api_keys = headers.getlist("Authorization"), headers.getlist(_KEY_HEADER)
        try:
            return await self._callers.authenticator.authenticate(tokens, api_keys)
        except TokenRejected as error:
            # The kind of fault is for the operator; a caller learns nothing that helps guessing.
            # For the log: the subject that still uses a revoked credential.
            exchange.principal = error.principal
            log_event("token_rejected", error.fault)
            if len(tokens) + len(api_keys) > 1:
                raise Unauthenticated from None
            raise Unauthenticated("API key" if api_keys else "bearer token") from None


@lru_cache(maxsize=1024)
def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
