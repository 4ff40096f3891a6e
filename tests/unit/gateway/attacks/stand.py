"""An edge that can be built with one check fewer, and requests down to the byte."""

import asyncio
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import normpath
from time import time
from urllib.parse import unquote

import httpx
from jwt.types import Options
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.app import EdgeParts, wrap
from gateway.auth.authenticator import Authenticator
from gateway.auth.credentials import Credentials
from gateway.auth.jwks import JwksKeys
from gateway.auth.verification_keys import Key, from_pem
from gateway.auth.verifier import (
    CLAIM_CHECKS,
    HEADER_CHECKS,
    MAX_TOKEN_CHARS,
    ClaimCheck,
    HeaderCheck,
    StaticKey,
    TrustedIssuer,
    Verifier,
)
from gateway.middleware.authentication import Callers
from gateway.predictions import Predictor
from gateway.rate_limit.limiter import Limiter
from gateway.rate_limit.memory_store import InProcessStore
from gateway.rate_limit.windows import Rules
from gateway.routes import Routes
from kaiten.settings.loader import Settings
from kaiten.settings.models import (
    ApiVersionSettings,
    GatewaySettings,
    JwksSettings,
    ServingSettings,
    TlsSettings,
)
from monitors.metrics.definitions import Metrics
from tests.unit.gateway.auth.mint import AUDIENCE, ISSUER, Json, jwk, jwks, public_pem
from tests.unit.gateway.auth.test_verifier import EVERY
from tests.unit.gateway.house import (
    AUTH,
    GOOD,
    LIMITS,
    SECRET,
    V1,
    Bodies,
    Book,
    Classifier,
    Events,
    FakeRegistry,
)
from tests.unit.gateway.rate_limit.house import Clock, Watch

# A key that is never rotated out.
STAYS = jwk("ES256#stays", kid="stays")
OWN, LOGIN, RSA = AUTH.issuer, ISSUER, "https://rsa.example.org/"
Issuers = Mapping[str, TrustedIssuer]
Headers = list[tuple[str, str | bytes]]


@dataclass(frozen=True)
class Defences:
    """All that stands before the model, each part to be replaced by itself."""

    trust: Callable[[Issuers], Issuers] = lambda issuers: issuers
    header_checks: Mapping[str, HeaderCheck] = field(default_factory=lambda: HEADER_CHECKS)
    claim_checks: Mapping[str, ClaimCheck] = field(default_factory=lambda: CLAIM_CHECKS)
    options: Options = field(default_factory=Options)
    required_claims: tuple[str, ...] = ("exp", "iss", "aud", "sub")
    max_token_chars: int = MAX_TOKEN_CHARS
    leeway_s: int = AUTH.leeway_s
    authenticator: type[Authenticator] = Authenticator
    # Of how many seconds have gone by since the stand was built.
    clock: Callable[[float], float] = lambda gone_s: time() + gone_s
    credentials: Credentials = field(default_factory=Credentials)
    # What is revoked while it runs is known.
    is_told: bool = True
    loopback_only: bool = False
    gateway: GatewaySettings = field(
        default_factory=lambda: LIMITS.model_copy(update={"metrics": "token", "docs": "closed"})
    )
    limits: Rules | None = None
    left_out: tuple[type[ASGIApp], ...] = ()
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
        self.gone_s = 0.0
        self.published = jwks(jwk("ES256", kid="1"), STAYS)
        self.app = wrap(_away, self._parts(), defences.left_out)

    def revoke(self, **more: object) -> None:
        """Revoke, and tell the workers of it if they are told of anything."""
        if self.defences.is_told:
            self.credentials = self.credentials.model_copy(update=more)

    async def answer(self, sent: Sent) -> httpx.Response:
        """Send a request, and return the answer."""
        path, _, query = sent.path.partition("?")
        scope = {
            "type": "http",
            "method": sent.method,
            # As uvicorn does it.
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), _raw(value)) for name, value in sent.headers],
            "client": (sent.client, 4711),
        }
        answered: list[Message] = []
        messages = _messages(sent)

        async def receive() -> Message:
            await asyncio.sleep(sent.pause_s) if sent.pause_s else None
            return next(messages, None) or await asyncio.Future[Message]()

        async def send(message: Message) -> None:
            answered.append(message)

        await self.app(scope, receive, send)
        content = b"".join(message.get("body", b"") for message in answered[1:])
        start = answered[0]
        return httpx.Response(start["status"], headers=start["headers"], content=content)

    def _parts(self) -> EdgeParts:
        defences = self.defences
        predictor = Predictor(FakeRegistry(Classifier()), defences.gateway)
        routes = Routes(predictor, Metrics(), defences.gateway, ApiVersionSettings())
        settings = Settings.model_construct(
            home=Path("/nowhere"),
            serving=ServingSettings(),
            gateway=defences.gateway,
            auth=AUTH,
            tls=TlsSettings(),
            api_versions=ApiVersionSettings(),
        )
        callers = Callers(self._authenticator(), defences.loopback_only)
        app = Starlette(routes=routes.routes())
        handlers = Loose(routes.direct(), app, inflates=defences.inflates)
        return EdgeParts(settings, callers, handlers, Book(), Bodies(), Events(), self._limiter())

    def _authenticator(self) -> Authenticator:
        defences = self.defences
        verifier = Verifier(
            defences.trust(self._issuers()),
            defences.leeway_s,
            defences.header_checks,
            defences.claim_checks,
            defences.options,
            defences.required_claims,
            defences.max_token_chars,
        )
        return defences.authenticator(
            verifier, lambda: self.credentials, lambda: defences.clock(self.gone_s)
        )

    def _issuers(self) -> Issuers:
        async def fetch(_: str) -> bytes:
            return self.published

        async def at_once(_: float) -> None:
            pass

        keys = JwksKeys(f"{LOGIN}jwks", JwksSettings(), fetch, sleep=at_once)
        secret = StaticKey(Key(SECRET, frozenset({"HS256"})))
        public = StaticKey(from_pem(public_pem("RS256")))
        return {
            OWN: TrustedIssuer(OWN, AUDIENCE, secret, EVERY),
            LOGIN: TrustedIssuer(LOGIN, AUDIENCE, keys, EVERY),
            RSA: TrustedIssuer(RSA, AUDIENCE, public, frozenset({"PS256"})),
        }

    def _limiter(self) -> Limiter | None:
        rules, clock = self.defences.limits, Clock()
        return Limiter(rules, InProcessStore(rules, clock), None, Watch(), clock) if rules else None


class Loose(Mapping[str, ASGIApp]):
    """Handlers that are found by a path that is nearly theirs, as many a router does it."""

    def __init__(self, direct: Mapping[str, ASGIApp], others: ASGIApp, *, inflates: bool) -> None:
        self._known = {**direct, "/metrics": others, "/docs": others, "/health": others}
        self._inflates = inflates

    def __getitem__(self, path: str) -> ASGIApp:
        plain = _plain(path)
        handler = self._known[plain]

        async def handle(scope: Scope, receive: Receive, send: Send) -> None:
            if self._inflates and b"content-encoding" in dict(scope["headers"]):
                receive = _inflated(receive)
            await handler({**scope, "path": plain}, receive, send)

        return handle

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def _plain(path: str) -> str:
    for end in ("\x00", "\n", "\r", ";", "?", "#"):
        path = "/".join(part.partition(end)[0] for part in path.split("/"))
    return normpath("/" + unquote(path).replace("\\", "/").strip("/ ")).lower()


def _inflated(receive: Receive) -> Receive:
    async def inflated() -> Message:
        message = await receive()
        # Of gzip or zlib, whichever it is.
        return {**message, "body": zlib.decompress(message["body"], wbits=47)}

    return inflated


def _messages(sent: Sent) -> Iterator[Message]:
    body = (
        sent.body
        if isinstance(sent.body, bytes)
        else httpx.Request("POST", "http://kaiten", json=sent.body).content
    )
    size = sent.chunk or len(body) or 1
    for start in range(0, max(len(body), 1), size):
        more = start + size < len(body)
        yield {"type": "http.request", "body": body[start : start + size], "more_body": more}


def _raw(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


async def _away(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b""})
