"""Both clients with a scripted server and a fake clock."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from kaiten_client import (
    AsyncClient,
    Client,
    FeedbackResponse,
    KaitenError,
    PredictResponse,
    Timing,
)

URL = "https://kaiten.example"
TEXT = "canary-4711 where is my parcel?"
TOKEN = "header.canary-payload.signature"
GOOD: dict[str, Any] = {
    "model": "intent:1.0.0",
    "request_id": "served",
    "predictions": [
        {
            "label": "delivery",
            "index": 1,
            "score": 0.75,
            "top_k": [{"label": "delivery", "index": 1, "score": 0.75}],
        }
    ],
}
Outcome = httpx.Response | Exception
# What a test gives, be it wrong.
Given = Any
BOTH = pytest.mark.parametrize("kind", ["sync", "async"])


def good() -> httpx.Response:
    return httpx.Response(200, json=GOOD)


def failure(
    status: int, code: str = "some_code", headers: dict[str, str] | None = None, **fields: Given
) -> httpx.Response:
    """Return a failure in Kaiten's envelope."""
    body = {"code": code, "message": "It failed.", "details": [], "request_id": "served"}
    return httpx.Response(status, json={"error": body | fields}, headers=headers)


def copy_for(request: httpx.Request, response: httpx.Response) -> httpx.Response:
    """Return a response in which the id "served" is that of the request."""
    content = response.content.replace(b'"served"', f'"{request.headers["X-Request-ID"]}"'.encode())
    headers = httpx.Headers(response.headers)
    headers.pop("Content-Length", None)
    return httpx.Response(response.status_code, headers=headers, content=content)


@dataclass
class Time:
    """A clock that advances only by waiting; random numbers are the largest possible."""

    now_s: float = 1000.0
    epoch_s: float = 0.0
    waited: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.now_s += seconds

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)

    def timing(self, part: float = 1.0) -> Timing:
        """Return it as a client takes it, with this part of each random span."""
        return Timing(
            now=lambda: self.now_s,
            epoch=lambda: self.epoch_s,
            sleep=self.sleep,
            sleep_async=self.sleep_async,
            uniform=lambda low, high: low + part * (high - low),
        )


@dataclass
class Script:
    """A server's outcomes, in turn, and the requests that it got; each takes ``step_s``."""

    outcomes: Iterator[Outcome]
    time: Time
    step_s: float = 0.0
    requests: list[httpx.Request] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.time.now_s += self.step_s
        outcome = next(self.outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        # A response can be read by one client only, and several tests share this one.
        return copy_for(request, outcome) if outcome.is_closed else outcome

    def sent(self, header: str) -> list[str | None]:
        """Return a header of each request."""
        return [request.headers.get(header) for request in self.requests]


class House:
    """A script before one of the two clients; ``part`` is of each random span."""

    def __init__(
        self, kind: str, *outcomes: Outcome, step_s: float = 0.0, part: float = 0.0
    ) -> None:
        self.kind = kind
        self.time = Time()
        self.script = Script(iter(outcomes), self.time, step_s)
        self._part = part

    def client(self, **options: Given) -> Client:
        return Client(options.pop("url", URL), **(self._client_options() | options))

    def async_client(self, **options: Given) -> AsyncClient:
        return AsyncClient(options.pop("url", URL), **(self._client_options() | options))

    def predict(self, inputs: Given = (TEXT,), **options: Given) -> PredictResponse:
        """Predict by a client with these options; ``call_options`` are those of the call."""
        call_options = options.pop("call_options", {})
        if self.kind == "sync":
            with self.client(**options) as client:
                return client.predict(inputs, **call_options)

        async def ask() -> PredictResponse:
            async with self.async_client(**options) as client:
                return await client.predict(inputs, **call_options)

        return asyncio.run(ask())

    def feedback(self, labels: Given, **options: Given) -> FeedbackResponse:
        if self.kind == "sync":
            with self.client(**options) as client:
                return client.feedback(labels)

        async def ask() -> FeedbackResponse:
            async with self.async_client(**options) as client:
                return await client.feedback(labels)

        return asyncio.run(ask())

    def ready(self, **options: Given) -> bool:
        if self.kind == "sync":
            with self.client(**options) as client:
                return client.ready()

        async def ask() -> bool:
            async with self.async_client(**options) as client:
                return await client.ready()

        return asyncio.run(ask())

    def _client_options(self) -> dict[str, Given]:
        transport = httpx.MockTransport(self.script)
        return {"transport": transport, "timing": self.time.timing(self._part)}


def error(house: House, **options: Given) -> KaitenError:
    """Return the error that asking ends with."""
    with pytest.raises(KaitenError) as raised:
        house.predict(**options)
    return raised.value
