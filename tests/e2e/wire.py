"""Connections that send any bytes, also bytes that are not HTTP."""

import json
import socket
from dataclasses import dataclass
from email.message import Message
from http.client import parse_headers
from typing import Self

LIMIT_S = 60


@dataclass(frozen=True)
class Answer:
    """An answer of nginx or of the server."""

    status: int
    headers: Message
    body: bytes

    @property
    def error(self) -> dict[str, object]:
        """What the envelope holds, once its form is checked."""
        assert self.headers["Content-Type"] == "application/json"
        envelope = json.loads(self.body)
        assert list(envelope) == ["error"]
        error: dict[str, object] = envelope["error"]
        assert list(error) == ["code", "message", "details", "request_id"]
        assert error["request_id"] == self.headers["X-Request-ID"]
        return error


class Connection:
    """A connection that sends any bytes, also bytes that are not HTTP."""

    def __init__(self, port: int, source: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection(
            ("127.0.0.1", port), LIMIT_S, source_address=(source, 0)
        )
        self._stream = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self.socket.close()

    def send(self, request: bytes) -> None:
        self.socket.sendall(request)

    def answer(self) -> Answer | None:
        """Return the next answer; None if the connection ends, in whatever way."""
        try:
            line = self._stream.readline()
        except ConnectionError:
            return None
        if not line:
            return None
        headers = parse_headers(self._stream)
        body = self._stream.read(int(headers["Content-Length"]))
        return Answer(int(line.split()[1]), headers, body)

    def ask(self, request: bytes) -> Answer:
        """Return the answer to a request."""
        self.send(request)
        answer = self.answer()
        assert answer is not None
        return answer

    def rest(self) -> bytes:
        """Return whatever comes until the end."""
        self.socket.shutdown(socket.SHUT_WR)
        try:
            return self._stream.read()
        except ConnectionError:
            return b""


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: kaiten", *headers, "", ""]).encode("latin-1")


def post(path: str, body: bytes, *headers: str) -> bytes:
    """Return a POST whose headers say all about its body."""
    return get(path, *headers).replace(b"GET", b"POST", 1) + body
