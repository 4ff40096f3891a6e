"""A small server that answers as a deployment does, but for what a test gives another answer."""

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "head.claims.signature"
TAG = "intent:1.0.0"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
PREDICT, MODELS = "/api/v2/predict", "/api/v2/models"


@dataclass(frozen=True)
class Request:
    """A request as it arrived."""

    path: str
    token: str
    id: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """A response; ``id`` None means the id of the request."""

    status: int
    body: object
    id: str | None = None
    headers: dict[str, str] = field(default_factory=lambda: dict(HEADERS))


Rule = Callable[[Request], Answer]


@dataclass
class Deployment:
    """Its rules by path; "" is for any other."""

    rules: dict[str, Rule]
    url: str = ""
    requests: list[Request] = field(default_factory=list)


def envelope(request: Request, status: int, code: str, *reasons: str) -> Answer:
    details = [{"field": "model", "reason": reason} for reason in reasons]
    error = {"code": code, "message": "No.", "details": details, "request_id": request.id}
    return Answer(status, {"error": error})


def prediction(request: Request, *, tag: str = TAG, label: str = "a", score: float = 0.9) -> Answer:
    if request.token != TOKEN:
        return envelope(request, 401, "unauthenticated")
    scored = {"label": label, "index": 0, "score": score}
    predictions = [{**scored, "top_k": [scored]}]
    return Answer(200, {"model": tag, "request_id": request.id, "predictions": predictions})


def labelled_prediction(request: Request) -> Answer:
    """Answer each text with its last word."""
    return prediction(request, label=request.body["inputs"][0].split()[-1])


def metrics(*, without: str = "", tag: str = TAG) -> str:
    model, _, version = tag.partition(":")
    ours = f'model="{model}",version="{version}"'
    lines = [
        "# HELP model_requests_total Requests.",
        f'model_requests_total{{route="/api/v2/predict",code="200",{ours}}} 3.0',
        f'kaiten_model_info{{digest="sha256:1f",{ours}}} 1.0',
        'kaiten_build_info{bento="kaiten_service:1-cpu",version="0.1.0"} 1.0',
    ]
    return "\n".join(line for line in lines if not (without and line.startswith(without))) + "\n"


def good() -> dict[str, Rule]:
    return {
        "/livez": lambda _: Answer(200, ""),
        "/readyz": lambda _: Answer(200, ""),
        PREDICT: prediction,
        "/metrics": lambda _: Answer(200, metrics()),
        "": lambda request: envelope(request, 404, "not_found"),
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # The head and the body in one packet: two would wait for each other.
    wbufsize = -1
    deployment: Deployment

    def handle(self) -> None:
        with suppress(OSError):
            super().handle()

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        body = json.loads(self.rfile.read(length)) if length else {}
        request = Request(self.path, token, self.headers["X-Request-ID"], body)
        self.deployment.requests.append(request)
        rules = self.deployment.rules
        answer = rules.get(self.path, rules[""])(request)
        content = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
        self.send_response_only(answer.status)
        headers = {**answer.headers, "X-Request-ID": answer.id or request.id}
        for name, value in {**headers, "Content-Length": str(len(content.encode()))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content.encode())

    do_POST = do_GET  # noqa: N815  the library's name

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve_deployment(tls: ssl.SSLContext | None = None) -> Iterator[Deployment]:
    """Serve a deployment on a port of its own."""
    deployment = Deployment(good())
    handler = type("_Handler", (_Handler,), {"deployment": deployment})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    # A thread that hangs on purpose is not waited for.
    server.block_on_close = False
    deployment.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    if tls is not None:
        # Each handshake is its connection's own business, in the thread of that.
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.02))
    thread.start()
    try:
        yield deployment
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
