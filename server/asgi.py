"""What BentoML is given before there is a worker: an app that answers through it.

BentoML puts its own app together first, and wraps it in middleware. It constructs the service, and
with it the worker, in that app's lifespan, before uvicorn accepts a connection.
"""

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from server.worker import Worker

_STARTING = PlainTextResponse("The worker is starting.\n", 503, {"Retry-After": "1"})


class WorkerApp:
    """The app of a worker that is attached once it is built."""

    def __init__(self) -> None:
        self._bentoml: ASGIApp = _STARTING
        self._edge: ASGIApp = _STARTING
        self._worker: Worker | None = None

    @property
    def worker(self) -> Worker:
        """The worker.

        Raises:
            RuntimeError: None is attached yet.

        """
        if self._worker is None:
            raise RuntimeError("no worker is attached yet")
        return self._worker

    def attach(self, worker: Worker) -> None:
        """Answer through this worker from now on."""
        self._worker = worker
        self._edge = worker.wrap(self._call_bentoml)

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Return the worker's middleware around BentoML's app, as BentoML asks for it."""
        self._bentoml = app
        return self._respond

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._edge if scope["type"] == "http" else self._bentoml
        await app(scope, receive, send)

    async def _call_bentoml(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._bentoml(scope, receive, send)
