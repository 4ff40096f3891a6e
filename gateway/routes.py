"""The routes that the gateway mounts into BentoML's app."""

import asyncio
from functools import cached_property

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api_versions import BENTOML, DOCUMENTS, NEWEST, PREDICT, VERSION_OF
from gateway.docs_page import DOCS_PAGE
from gateway.interfaces import MetricsSource
from gateway.openapi import Json, document
from gateway.parsing import read
from gateway.predictions import Predictor
from gateway.responses import JsonResponse, health_answer, json_answer
from gateway.schemas import PredictV1Request, PredictV2Request
from kaiten.settings.models import ApiVersionSettings, GatewaySettings


class Routes:
    """The handlers."""

    def __init__(
        self,
        predictor: Predictor,
        metrics: MetricsSource,
        limits: GatewaySettings,
        versions: ApiVersionSettings,
        *,
        quality: bool = True,
    ) -> None:
        self._predictor = predictor
        self._metrics = metrics
        self._limits = limits
        self._versions = versions
        self._quality = quality
        self._exposing: asyncio.Task[tuple[bytes, str]] | None = None

    def direct(self) -> dict[str, ASGIApp]:
        """Return the handlers that the edge calls itself, by path."""
        return {
            PREDICT["1"]: self.predict_v1,
            PREDICT["2"]: self.predict_v2,
            # BentoML's own handler would parse the body once more, on the event loop.
            BENTOML: self.predict_v2,
        }

    def routes(self) -> list[Route]:
        """Return the routes to mount at the root, for all other routes of ours."""
        return [
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            *(Route(path, self.openapi) for path in ("/docs.json", *DOCUMENTS.values())),
            Route("/docs", self.docs),
            Route("/", self.docs),
        ]

    async def predict_v1(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer for one text; the body comes whole, from the middleware that has read it."""
        body = await read((await receive())["body"], PredictV1Request, self._limits)
        answer = await self._predictor.one(body.text)
        await json_answer(answer)(scope, receive, send)

    async def predict_v2(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer for several texts."""
        body = await read((await receive())["body"], PredictV2Request, self._limits)
        answer = await self._predictor.many(body.inputs, body.top_k, body.model)
        await JsonResponse(answer)(scope, receive, send)

    async def health(self, _: Request) -> Response:
        """Tell whether the service can answer."""
        return health_answer(ready=self._predictor.ready)

    async def metrics(self, _: Request) -> Response:
        """Give the metrics of all workers; who asks while they are being read shares the answer."""
        if self._exposing is None or self._exposing.done():
            self._exposing = asyncio.create_task(asyncio.to_thread(self._metrics.exposition))
        # A caller who leaves ends no thread.
        content, content_type = await asyncio.shield(self._exposing)
        return Response(content, headers={"Content-Type": content_type})

    async def openapi(self, request: Request) -> Response:
        """Give the OpenAPI document of the path's version, or of the newest."""
        return JSONResponse(self._documents[VERSION_OF.get(request.scope["path"], NEWEST)])

    @cached_property
    def _documents(self) -> dict[str, Json]:
        """The documents, made when one is first asked for: their routes are open to all."""
        return {
            version: document(
                version,
                self._limits,
                deprecated=self._versions.lifetime(version).deprecated_at is not None,
                quality=self._quality,
            )
            for version in DOCUMENTS
        }

    async def docs(self, _: Request) -> Response:
        """Show the documents; the page's own parts come from this server."""
        return HTMLResponse(DOCS_PAGE)
