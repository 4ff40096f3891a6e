"""An edge that can be built with one check fewer, and requests down to the byte."""

import asyncio
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import normpath
from time import time
from typing import Any
from urllib.parse import unquote

import httpx
from jwt.types import Options
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.app import EdgeParts, layers, route_table
from gateway.auth.authenticator import Authenticator
from gateway.auth.credentials import Credentials
from gateway.auth.jwks import JwksKeys
from gateway.auth.verification_keys import Key, from_pem
from gateway.auth.verifier import ClaimCheck, HeaderCheck, StaticKey, TrustedIssuer, Verifier
from gateway.exchange import Exchange, exchange_of
from gateway.middleware.access import Callers
from gateway.middleware.dispatch import DispatchMiddleware
from gateway.prediction import PredictionHandler
from gateway.rate_limit.limiter import Limiter
from gateway.rate_limit.memory_store import InProcessStore
from gateway.rate_limit.windows import SubjectRules
from gateway.services import MetricsReader, Services
from kaiten.settings.loader import Settings
from kaiten.settings.models import (
    ApiVersionSettings,
    GatewaySettings,
    JwksSettings,
    ServingSettings,
    TlsSettings,
)
from monitors.metrics.definitions import Metrics
from monitors.metrics.latency import LatencyStats
from tests.unit.gateway.auth.mint import AUDIENCE, ISSUER, Json, jwk, jwks, public_pem
from tests.unit.gateway.auth.test_verifier import ALL_ALGORITHMS
from tests.unit.gateway.house import (
    AUTH,
    GOOD,
    LIMITS,
    SECRET,
    V1,
    Classifier,
    Drift,
    Events,
    FakeMetrics,
    FakeRegistry,
)
from tests.unit.gateway.rate_limit.house import Clock

# A key that is never rotated out.
STAYS = jwk("ES256#stays", kid="stays")
OWN, LOGIN, RSA = AUTH.issuer, ISSUER, "https://rsa.example.org/"
Issuers = Mapping[str, TrustedIssuer]
Headers = list[tuple[str, str | bytes]]


@dataclass(frozen=True)
class Defences:
    """All that stands before the model, each part to be replaced by itself."""

    trust: Callable[[Issuers], Issuers] = lambda issuers: issuers
    header_checks: Mapping[str, HeaderCheck] = field(default_factory=lambda: Verifier.header_checks)
    claim_checks: Mapping[str, ClaimCheck] = field(default_factory=lambda: Verifier.claim_checks)
    # PyJWT's, before the verifier's own, and the claims that a token may leave out.
    options: Options = field(default_factory=Options)
    optional_claims: frozenset[str] = frozenset()
    leeway_s: int = AUTH.leeway_s
    authenticator: type[Authenticator] = Authenticator
    # Of how many seconds have gone by since the stand was built.
    clock: Callable[[float], float] = lambda elapsed_s: time() + elapsed_s
    credentials: Credentials = field(default_factory=Credentials)
    # Whether the workers learn of later revocations.
    is_notified: bool = True
    loopback_only: bool = False
    gateway: GatewaySettings = field(
        default_factory=lambda: LIMITS.model_copy(update={"metrics": "token", "docs": "closed"})
    )
    limits: SubjectRules | None = None
    # Middleware with a check fewer, by the class that it stands in for.
    replaced: Mapping[type, Callable[..., ASGIApp]] = field(default_factory=dict)
    # A handler that inflates whatever says that it is compressed.
    inflates: bool = False
    # Guards of PyJWT's own, which no setting of it switches off, and what stands in for each.
    libraries: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Sent:
    """A request, as its bytes are."""

    path: str = V1
    headers: Headers = field(default_factory=list)
    body: bytes | Json = field(default_factory=lambda: dict(GOOD[V1]))
    method: str = "POST"
    client: str = "127.0.0.1"
    chunk: int | None = None
    pause_s: float = 0


class Stand:
    """The whole edge with a model behind it, built of its defences."""

    def __init__(self, defences: Defences) -> None:
        self.defences = defences
        self.credentials = defences.credentials
        self.elapsed_s = 0.0
        self.published = jwks(jwk("ES256", kid="1"), STAYS)
        replaced: Mapping[Any, Callable[..., ASGIApp]] = {
            DispatchMiddleware: self._loose_dispatch,
            **defences.replaced,
        }
        app: ASGIApp = _away
        for layer in layers(self._parts()):
            middleware = getattr(layer, "func", layer)
            options = getattr(layer, "keywords", {})
            app = replaced.get(middleware, middleware)(app, **options)
        self.app = app

    def revoke(self, **more: object) -> None:
        """Revoke, and notify the workers if they are notified at all."""
        if self.defences.is_notified:
            self.credentials = self.credentials.model_copy(update=more)

    async def answer(self, request: Sent) -> httpx.Response:
        """Send a request, and return the answer."""
        path, _, query = request.path.partition("?")
        scope = {
            "type": "http",
            "method": request.method,
            # As uvicorn does it.
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), _raw(value)) for name, value in request.headers],
            "client": (request.client, 4711),
        }
        sent_messages: list[Message] = []
        messages = _messages(request)

        async def receive() -> Message:
            await asyncio.sleep(request.pause_s) if request.pause_s else None
            return next(messages, None) or await asyncio.Future[Message]()

        async def send(message: Message) -> None:
            sent_messages.append(message)

        await self.app(scope, receive, send)
        content = b"".join(message.get("body", b"") for message in sent_messages[1:])
        start = sent_messages[0]
        return httpx.Response(start["status"], headers=start["headers"], content=content)

    def _parts(self) -> EdgeParts:
        defences = self.defences
        settings = Settings.model_construct(
            home=Path("/nowhere"),
            serving=ServingSettings(),
            gateway=defences.gateway,
            auth=AUTH,
            tls=TlsSettings(),
            api_versions=ApiVersionSettings(),
        )
        table = route_table(settings)
        services = Services(
            settings,
            table,
            PredictionHandler(FakeRegistry(Classifier()), defences.gateway, lambda: True),
            MetricsReader(Metrics().exposition),
            LatencyStats(table.model_routes),
            Drift(),
            None,
            lambda: False,
        )
        callers = Callers(self._authenticator(), defences.loopback_only)
        return EdgeParts(services, callers, FakeMetrics(), Events(), self._limiter())

    def _loose_dispatch(self, app: ASGIApp, services: Services) -> ASGIApp:
        return LooseDispatch(app, services, inflates=self.defences.inflates)

    def _authenticator(self) -> Authenticator:
        defences = self.defences
        verifier = weaker_verifier(defences)(defences.trust(self._issuers()), defences.leeway_s)
        return defences.authenticator(
            verifier, lambda: self.credentials, lambda: defences.clock(self.elapsed_s)
        )

    def _issuers(self) -> Issuers:
        async def fetch(_: str) -> bytes:
            return self.published

        async def skip_sleep(_: float) -> None:
            pass

        keys = JwksKeys(f"{LOGIN}jwks", JwksSettings(), fetch, sleep=skip_sleep)
        secret = StaticKey(Key(SECRET, frozenset({"HS256"})))
        public = StaticKey(from_pem(public_pem("RS256")))
        return {
            OWN: TrustedIssuer(OWN, AUDIENCE, secret, ALL_ALGORITHMS),
            LOGIN: TrustedIssuer(LOGIN, AUDIENCE, keys, ALL_ALGORITHMS),
            RSA: TrustedIssuer(RSA, AUDIENCE, public, frozenset({"PS256"})),
        }

    def _limiter(self) -> Limiter | None:
        rules, clock = self.defences.limits, Clock()
        if rules is None:
            return None
        return Limiter(rules, InProcessStore(clock), None, FakeMetrics(), clock)


def weaker_verifier(defences: Defences) -> type[Verifier]:
    """Return a verifier with those of its checks that the defences have."""

    class WeakerVerifier(Verifier):
        header_checks = defences.header_checks
        claim_checks = defences.claim_checks

        def _options(self, issuer: TrustedIssuer) -> Options:
            options = Verifier._options(self, issuer)
            required = [*{*options["require"]} - defences.optional_claims]
            return {**defences.options, **options, "require": required}

    return WeakerVerifier


class LooseDispatch(DispatchMiddleware):
    """Finds a route by a path that is nearly its own, as many a router does."""

    def __init__(self, app: ASGIApp, services: Services, *, inflates: bool) -> None:
        super().__init__(app, services)
        self._routes, self._inflates = services.routes, inflates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        exchange.match = self._routes.match("GET", _plain(scope["path"]))
        if not exchange.body:
            # The body was not read, as its check is off.
            await _read_unchecked(exchange, receive)
        if self._inflates and b"content-encoding" in dict(scope["headers"]):
            # Of gzip or zlib, whichever it is.
            exchange.body = zlib.decompress(exchange.body, wbits=47)
        await super().__call__(scope, receive, send)


async def _read_unchecked(exchange: Exchange, receive: Receive) -> None:
    more = exchange.match is not None and exchange.match.spec.request is not None
    while more:
        message = await receive()
        exchange.body += message["body"]
        more = message["more_body"]


def _plain(path: str) -> str:
    for end in ("\x00", "\n", "\r", ";", "?", "#"):
        path = "/".join(part.partition(end)[0] for part in path.split("/"))
    return normpath("/" + unquote(path).replace("\\", "/").strip("/ ")).lower()


def _messages(request: Sent) -> Iterator[Message]:
    body = (
        request.body
        if isinstance(request.body, bytes)
        else httpx.Request("POST", "http://kaiten", json=request.body).content
    )
    size = request.chunk or len(body) or 1
    for start in range(0, max(len(body), 1), size):
        more = start + size < len(body)
        yield {"type": "http.request", "body": body[start : start + size], "more_body": more}


def _raw(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


async def _away(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b""})
