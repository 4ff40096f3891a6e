"""An issuer of tokens: a real server that publishes its keys, rotates them, hangs and goes away."""

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.servers import free_port
from tests.unit.gateway.auth.mint import AUDIENCE, Json, jwk, private, token

_POLL_S = 0.02
# Made before they are needed: a rotation is a moment.
_KINDS = [f"{algorithm}#{number}" for number in range(3) for algorithm in ("ES256", "RS256")]


@dataclass
class Issuer:
    """Signs by its newest key, and publishes the last ones; ``fetched_at`` by the monotonic clock.

    Issuers of one ``family`` have the same keys. ``answer`` replaces the key set by any
    status and bytes.
    """

    published_keys: int = 3
    family: str = "ours"
    port: int = field(default_factory=free_port)
    fetched_at: list[float] = field(default_factory=list)
    answer: tuple[int, bytes] | None = None
    _number: int = 0
    _published: deque[Json] = field(default_factory=deque)
    _answers: threading.Event = field(default_factory=threading.Event)
    _server: ThreadingHTTPServer | None = None

    def __post_init__(self) -> None:
        for number in range(len(_KINDS)):
            private(self._kind(number))
        self._answers.set()
        self.rotate()

    @property
    def name(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.name}/jwks.json"

    @property
    def kid(self) -> str:
        return f"key-{self._number}"

    def settings(self) -> Json:
        """Return what stands in auth.issuers for it."""
        return {"issuer": self.name, "audience": AUDIENCE, "jwks_url": self.url}

    def rotate(self) -> str:
        """Publish a new key, sign with it from now on, let the oldest go, and return its id."""
        number = self._number + 1
        key = jwk(self._kind(number), kid=f"key-{number}")
        self._published = deque([*self._published, key], self.published_keys)
        self._number = number
        return self.kid

    def token(self, subject: str = "alice", **changes: object) -> str:
        """Return a token signed by the newest key."""
        claims: Json = {"iss": self.name, "sub": subject, **changes}
        return token(self._kind(self._number), kid=self.kid, **claims)

    def _kind(self, number: int) -> str:
        return f"{_KINDS[number % len(_KINDS)]}-{self.family}"

    def response(self) -> tuple[int, bytes]:
        """Return the status and the bytes of an answer, once it may be given."""
        self.fetched_at.append(time.monotonic())
        keys = list(self._published)
        self._answers.wait()
        return self.answer or (200, json.dumps({"keys": keys}).encode())

    def hang(self) -> None:
        """Take connections, and answer none of them."""
        self._answers.clear()

    def go_on(self) -> None:
        self._answers.set()

    def up(self) -> None:
        """Listen, on the same port every time."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), daemon=True).start()

    def down(self) -> None:
        """Refuse connections."""
        self.go_on()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def _handler(issuer: Issuer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, content = issuer.response()
            # The client may have given up.
            with suppress(ConnectionError):
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    return Handler


@contextmanager
def issuing(published_keys: int = 3) -> Iterator[Issuer]:
    """Run an issuer on this machine."""
    issuer = Issuer(published_keys)
    issuer.up()
    try:
        yield issuer
    finally:
        issuer.down()
