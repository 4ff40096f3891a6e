"""BentoML's app takes the worker's middleware before there is a worker."""

from typing import cast

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from server.asgi import WorkerApp
from server.worker import Worker

_OURS = PlainTextResponse("ours")


async def _bentoml(_: Request) -> Response:
    return PlainTextResponse("bentoml")


class FakeWorker:
    """A worker whose middleware answers one route, and notes what passes it."""

    def __init__(self) -> None:
        self.passed: list[str] = []

    def wrap(self, app: ASGIApp) -> ASGIApp:
        async def edge(scope: Scope, receive: Receive, send: Send) -> None:
            self.passed.append(scope["path"])
            await (_OURS if scope["path"] == "/ours" else app)(scope, receive, send)

        return edge


def bentoml_app(app: WorkerApp) -> Starlette:
    """Put an app together as BentoML does: its routes, and middleware."""
    return Starlette(routes=[Route("/theirs", _bentoml)], middleware=[Middleware(app.middleware)])


async def ask(app: ASGIApp, path: str) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://kaiten") as client:
        return await client.get(path)


@pytest.mark.parametrize("asked_before", [True, False])
async def test_requests_pass_the_worker_once_it_is_attached(*, asked_before: bool) -> None:
    app, worker = WorkerApp(), FakeWorker()
    bentoml = bentoml_app(app)
    if asked_before:
        # The middleware is built with the first request.
        assert (await ask(bentoml, "/theirs")).status_code == 503
    attached = cast("Worker", worker)
    app.attach(attached)
    assert app.worker is attached
    assert (await ask(bentoml, "/ours")).text == "ours"
    assert (await ask(bentoml, "/theirs")).text == "bentoml"
    assert worker.passed == ["/ours", "/theirs"]


async def test_before_that_no_route_is_reached() -> None:
    app = WorkerApp()
    response = await ask(bentoml_app(app), "/theirs")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    with pytest.raises(RuntimeError, match="no worker"):
        _ = app.worker


async def test_lifespan_is_bentomls_own() -> None:
    app, scopes = WorkerApp(), list[str]()

    async def bentoml(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope["type"])

    async def receive() -> dict[str, str]:
        return {"type": "lifespan.startup"}

    async def send(_: object) -> None: ...

    await app.middleware(bentoml)({"type": "lifespan"}, receive, send)
    assert scopes == ["lifespan"]
