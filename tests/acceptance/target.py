"""The requests that a server of ours is asked."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.client import encode


@dataclass(frozen=True)
class Target:
    """A server, and the token that it knows us by."""

    port: int
    token: str

    def v1(self, text: str, **headers: str) -> bytes:
        return self._encode("/api/v1/predict", {"text": text}, headers)

    def v2(self, texts: Sequence[str], **headers: str) -> bytes:
        return self._encode("/api/v2/predict", {"inputs": list(texts)}, headers)

    def get(self, path: str) -> bytes:
        return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n\r\n".encode()

    def _encode(self, path: str, value: object, headers: dict[str, str]) -> bytes:
        """Return a whole request; underscores in the headers' names are hyphens."""
        named_headers = {name.replace("_", "-"): value for name, value in headers.items()}
        body = json.dumps(value).encode()
        return encode(
            self.port, path, body, {"Authorization": f"Bearer {self.token}", **named_headers}
        )
