"""The gateway around trivial runners, and what the tests send it and find in it."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from gateway.app import EdgeParts, route_table, wrap
from gateway.auth.factory import build
from gateway.auth.minting import mint
from gateway.auth.signing_secret import SigningSecret
from gateway.interfaces import EventSink, GatewayMetrics, PredictionRunner
from gateway.middleware.access import Callers
from gateway.prediction import PredictionHandler
from gateway.rate_limit.limiter import Limiter
from gateway.routes import RouteTable
from gateway.services import MetricsReader, Services
from kaiten.context import current_or_none
from kaiten.events import PredictionEvent
from kaiten.feedback import Estimate, Label, Measures, VersionQuality
from kaiten.settings.loader import Settings
from kaiten.settings.models import (
    ApiVersionSettings,
    AuthSettings,
    FeedbackSettings,
    GatewaySettings,
    ServingSettings,
    TlsSettings,
)
from monitors.metrics.definitions import Metrics
from monitors.metrics.latency import LatencyStats

V1 = "/api/v1/predict"
V2 = "/api/v2/predict"
BENTO = "/predict"
PREDICTIONS = (V1, V2, BENTO)
GOOD: Mapping[str, Mapping[str, object]] = {
    V1: {"text": "my delivery"},
    V2: {"inputs": ["my delivery"]},
    BENTO: {"inputs": ["my delivery"]},
}
LABELS = ("billing", "delivery", "account", "other")
TAG = "intent:1.0.0"
CANARY = "canary-4711"
SECRET = "0123456789abcdef" * 4
AUTH = AuthSettings()
AS_THEY_ARE = ApiVersionSettings()
LIMITS = GatewaySettings(max_body_bytes=256 * 1024, max_inputs=8, max_text_chars=100)

# One version of which all is known, and one of which nothing is.
QUALITIES = (
    VersionQuality(
        "intent",
        "1.0.0",
        "production",
        Measures(
            labelled=40,
            first_at=datetime(2026, 11, 1, tzinfo=UTC),
            last_at=datetime(2026, 11, 2, tzinfo=UTC),
            accuracy=0.9,
            precision=0.8,
            recall=0.7,
            f1=0.75,
            observed_error=0.02,
        ),
        Estimate(
            accuracy=0.88,
            low=0.85,
            high=0.91,
            rows=1000,
            error=0.01,
            error_rows=200,
            error_windows=5,
        ),
        report="report",
    ),
    VersionQuality("intent", "2.0.0", "shadow", None, None, reason="there is none"),
)

# Whatever JSON holds.
Json = Any
Content = bytes | AsyncIterator[bytes]


MAX_WORDS = 10


@dataclass(frozen=True)
class Answer:
    """What a runner answers for one text."""

    scores: NDArray[np.float32]
    tokens: int
    unknown_tokens: int = 0
    entropy: float = 0.5
    distance: float | None = None
    truncated: bool = False

    @property
    def index(self) -> int:
        return int(self.scores.argmax())

    @property
    def confidence(self) -> float:
        return float(self.scores.max())


class Classifier:
    """Scores a label by how often the text names it; a text that names none scores all evenly."""

    queue_delay_s = 7

    def __init__(self, tag: str = TAG, *, ready: bool = True) -> None:
        self.model_tag = tag
        self.labels: Sequence[str] = LABELS
        self.ready = ready

    def retry_after_s(
        self, subject: str, inputs: int, deadline: float, ahead: int = 0
    ) -> int | None:
        return None

    async def predict(self, inputs: Sequence[str], deadline: float) -> list[Answer]:
        context = current_or_none()
        if context is not None and context.reserve is not None:
            await context.reserve(sum(len(text.split()) for text in inputs))
        return [self._answer(text.split()) for text in inputs]

    def _answer(self, words: list[str]) -> Answer:
        counts = np.array([1 + words.count(label) for label in self.labels], dtype=np.float32)
        truncated = len(words) > MAX_WORDS
        return Answer(counts / counts.sum(), tokens=len(words), truncated=truncated)


class Raising(Classifier):
    """Raises instead of answering."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    async def predict(self, inputs: Sequence[str], deadline: float) -> list[Answer]:
        raise self._error


class Broken(Classifier):
    """Answers with scores that are not numbers."""

    async def predict(self, inputs: Sequence[str], deadline: float) -> list[Answer]:
        scores = np.full(len(self.labels), np.nan, dtype=np.float32)
        return [Answer(scores, tokens=1) for _ in inputs]


class Stuck(Classifier):
    """Never answers; an event is set once it has a request."""

    def __init__(self) -> None:
        super().__init__()
        self.predict_started = asyncio.Event()
        self.dropped = False

    async def predict(self, inputs: Sequence[str], deadline: float) -> list[Answer]:
        self.predict_started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.dropped = True
        raise AssertionError


class FakeRegistry:
    """A registry of runners, the first of which is the default."""

    def __init__(self, *runners: PredictionRunner) -> None:
        self._runners = {
            name: runner for runner in runners for name in (runner.model_tag, _name(runner))
        }
        self._all = runners

    @property
    def ready(self) -> bool:
        return all(runner.ready for runner in self._all)

    def __iter__(self) -> Iterator[PredictionRunner]:
        return iter(self._all)

    def get(self, model: str | None) -> PredictionRunner | None:
        return self._all[0] if model is None else self._runners.get(model)


def _name(runner: PredictionRunner) -> str:
    return runner.model_tag.partition(":")[0]


@dataclass
class FakeMetrics:
    """The calls of the gateway to its metrics; memory is in bytes."""

    started: list[str] = field(default_factory=list)
    answered: list[tuple[str, str, int]] = field(default_factory=list)
    refused_early: list[str] = field(default_factory=list)
    limited: list[str] = field(default_factory=list)
    degraded: list[bool] = field(default_factory=list)
    body_sizes: list[int] = field(default_factory=list)
    refused_bodies: int = 0

    def request_started(self, route: str) -> None:
        self.started.append(route)

    def request_answered(self, route: str, model_tag: str, code: int, seconds: float) -> None:
        assert seconds >= 0
        self.answered.append((route, model_tag, code))

    def request_refused_early(self, reason: str) -> None:
        self.refused_early.append(reason)

    def request_limited(self, limit: str) -> None:
        self.limited.append(limit)

    def limits_degraded(self, *, degraded: bool) -> None:
        self.degraded.append(degraded)

    def body_bytes_changed(self, size_bytes: int) -> None:
        self.body_sizes.append(size_bytes)

    def body_refused(self) -> None:
        self.refused_bodies += 1


class Drift:
    """Knows of no version."""

    def drift(self) -> list[object]:
        return []


@dataclass
class Events:
    """The events that were emitted."""

    emitted: list[PredictionEvent] = field(default_factory=list)

    def emit(self, events: Sequence[PredictionEvent]) -> None:
        self.emitted.extend(events)


@dataclass
class Desk:
    """Keeps the labels it receives, and returns the qualities it was made with; or raises."""

    qualities: Sequence[VersionQuality] = ()
    error: Exception | None = None
    submissions: list[tuple[Sequence[Label], frozenset[str] | None]] = field(default_factory=list)

    async def take(
        self,
        labels: Sequence[Label],
        models: frozenset[str] | None,
        deadline: float,
        subject: str,
    ) -> int:
        if self.error is not None:
            raise self.error
        self.submissions.append((labels, models))
        return len(labels) - 1

    async def read(self, deadline: float) -> Sequence[VersionQuality]:
        if self.error is not None:
            raise self.error
        return self.qualities


def callers(settings: Settings, secret: SigningSecret) -> Callers:
    """Return the authentication of callers by a secret alone."""
    tokens = build(settings, secret)
    tokens.watch.poll()
    return Callers(tokens.authenticator, secret.development)


class House:
    """The whole edge; with ``inner``, another app answers in place of every handler."""

    def __init__(
        self,
        *runners: PredictionRunner,
        inner: ASGIApp | None = None,
        secret: SigningSecret | None = None,
        request_timeout_s: float = 30,
        events: EventSink | None = None,
        gateway: GatewaySettings = LIMITS,
        tls: TlsSettings | None = None,
        limiter: Limiter | None = None,
        versions: ApiVersionSettings = AS_THEY_ARE,
        desk: Desk | None = None,
        feedback: FeedbackSettings = FeedbackSettings(),  # noqa: B008  it is frozen
        draining: bool = False,
        metrics: GatewayMetrics | None = None,
    ) -> None:
        self.desk, self.draining = desk or Desk(), draining
        settings = Settings.model_construct(
            home=Path("/nowhere"),
            serving=ServingSettings(request_timeout_s=request_timeout_s),
            gateway=gateway,
            auth=AUTH,
            tls=tls or TlsSettings(),
            api_versions=versions,
            feedback=feedback,
        )
        table = route_table(settings)
        if inner is not None:
            table = RouteTable([replace(spec, handler=None) for spec in table.specs], settings)
        self.times = LatencyStats(table.model_routes)
        self.services = Services(
            settings,
            table,
            PredictionHandler(FakeRegistry(*(runners or (Classifier(),))), gateway, lambda: True),
            MetricsReader(Metrics().exposition),
            self.times,
            Drift(),
            self.desk,
            lambda: self.draining,
        )
        self.metrics = FakeMetrics()
        self.events = Events()
        self.app = wrap(
            inner or PlainTextResponse("not found", 404),
            EdgeParts(
                self.services,
                callers(settings, secret or SigningSecret(SECRET, development=False)),
                metrics or self.metrics,
                events or self.events,
                limiter,
            ),
        )

    async def ask(
        self,
        method: str,
        path: str,
        content: Content | None = None,
        headers: Mapping[str, str | bytes] | None = None,
        client: str = "127.0.0.1",
    ) -> httpx.Response:
        """Send a request as it stands."""
        # As bytes, so that a header may hold what no client of good manners sends.
        raw = {name.encode(): _raw(value) for name, value in (headers or {}).items()}
        transport = httpx.ASGITransport(self.app, client=(client, 4711))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://kaiten", trust_env=False
        ) as http:
            return await http.request(method, path, content=content, headers=raw)

    async def post(
        self,
        path: str,
        body: Json,
        headers: Mapping[str, str | bytes] | None = None,
        client: str = "127.0.0.1",
    ) -> httpx.Response:
        """Send a body, or a value as JSON, with a token that may ask every model."""
        content: Content = (
            body if isinstance(body, bytes | AsyncIterator) else json.dumps(body).encode()
        )
        defaults: dict[str, str | bytes] = {
            "Content-Type": "application/json",
            "Authorization": bearer("predict"),
        }
        return await self.ask("POST", path, content, {**defaults, **(headers or {})}, client)


def bearer(*scopes: str, secret: str = SECRET, subject: str = "alice") -> str:
    """Return the Authorization header of a good token."""
    return f"Bearer {mint(subject, [*scopes], timedelta(hours=1), AUTH, secret)}"


def paths_of(routes: RouteTable) -> set[str]:
    """Return the path of each route, negotiated ones among them."""
    return {spec.path for spec in (*routes.negotiating, *routes.specs)}


def error_of(answer: httpx.Response) -> Json:
    """Return what the envelope holds, once its form is checked."""
    assert answer.headers["Content-Type"] == "application/json"
    body = answer.json()
    assert list(body) == ["error"]
    error = body["error"]
    assert list(error) == ["code", "message", "details", "request_id"]
    assert all(list(detail) == ["field", "reason"] for detail in error["details"])
    assert error["request_id"] == answer.headers["X-Request-ID"]
    return error


def fields_of(answer: httpx.Response) -> list[str]:
    """Return the fields that the envelope names."""
    return [detail["field"] for detail in error_of(answer)["details"]]


def _raw(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
