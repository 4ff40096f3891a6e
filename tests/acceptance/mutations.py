"""Mutations of plausible requests."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_BREAK = b"\r\n"
_ODD_BYTES = (b"\0", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b":", b" ", b"\t", b"%", b"\x7f", b"\xff")
_NUMBERS = (
    *("-1", "+2", "0x10", "1e3", "", " ", "4 4", "4, 5", "18446744073709551616", "9" * 400),
    *("4194304", "4194305", "1073741824", "0", "00004", "\u0664"),
)
_FIELDS = {
    "Host": ("", "a/b", "[::1", "a" * 5000, "\xff"),
    "Content-Type": ("", "text/plain", "application/json; charset=utf-16", "a" * 9000, "\xff/\xfe"),
    "Authorization": ("", "Bearer", "Bearer " * 50, "Basic YTpi", "\xe9", "Bearer a, Bearer b"),
    "X-Request-ID": ("", "a" * 65, "\xe9\xff", "a b", "${jndi}", '"}'),
    "X-Forwarded-For": ("", "::1", "[", "203.0.113.9, , 1", "a" * 3000, "\xff"),
    "X-Forwarded-Proto": ("", "https", "javascript", "\xff"),
    "Transfer-Encoding": (
        "",
        "chunked",
        "gzip, chunked",
        "chunked, chunked",
        "xchunked",
        " chunked",
    ),
    "Content-Encoding": ("gzip", "br", "identity", "\xff"),
    "Connection": ("close", "keep-alive", "upgrade", "close, keep-alive", "a" * 2000),
    "Upgrade": ("websocket", "h2c", "TLS/1.0", ""),
    "Sec-WebSocket-Key": ("AAAAAAAAAAAAAAAAAAAAAA==", "short", "\xff"),
    "Sec-WebSocket-Version": ("13", "8", "x"),
    "Expect": ("100-continue", "200-ok", ""),
    "Range": ("bytes=0-", "bytes=-1", "bytes=9-1,2-3", "x"),
    "Accept-Encoding": ("gzip;q=2", "\xff", "*"),
    "traceparent": ("00-0-0-0", "a" * 200, "\xff"),
}
_LINES = (
    b"GET / HTTP/1.1",
    b"GET /livez",
    b"GET  /livez  HTTP/1.1",
    b"get /livez HTTP/1.1",
    b"GET http://other/livez HTTP/1.1",
    b"GET http:///livez HTTP/1.1",
    b"GET //livez HTTP/1.1",
    b"GET ?a HTTP/1.1",
    b"GET /%00%0a%ff%zz HTTP/1.1",
    b"GET /static_content/%2e%2e/%2e%2e/service.py HTTP/1.1",
    b"GET /static_content/%00 HTTP/1.1",
    b"GET /static_content/" + b"a" * 5000 + b" HTTP/1.1",
    b"GET /metrics?name[]=\xff HTTP/1.1",
    b"GET /docs.json#a HTTP/1.1",
    b"HEAD /metrics HTTP/1.0",
    b"OPTIONS * HTTP/1.1",
    b"CONNECT a:1 HTTP/1.1",
    b"PRI * HTTP/2.0",
    b"POST /predict HTTP/9.9",
    b"BREW /predict HTTP/1.1",
    b"GET /\xc3\xa9 HTTP/1.1",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1",
)


@dataclass
class Mutations:
    """Makes one request after another; the same chance makes the same ones."""

    chance: random.Random
    originals: Sequence[bytes]

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        """Yield the kind of a mutation, and what it made, without an end."""
        kinds: Sequence[tuple[str, Callable[[bytes], bytes]]] = [
            ("bits", self._flip),
            ("splice", self._splice),
            ("truncation", self._truncate),
            ("odd bytes", self._insert),
            ("lines", self._shuffle),
            ("length", self._length),
            ("chunks", self._chunks),
            ("fields", self._fields),
            ("request line", self._line),
            ("pipeline", self._pipeline),
            ("noise", self._noise),
        ]
        while True:
            name, make = self.chance.choice(kinds)
            yield name, make(self.chance.choice(self.originals))

    def _flip(self, request: bytes) -> bytes:
        changed = bytearray(request)
        for _ in range(self.chance.choice((1, 1, 2, 8))):
            changed[self.chance.randrange(len(changed))] ^= 1 << self.chance.randrange(8)
        return bytes(changed)

    def _splice(self, request: bytes) -> bytes:
        other = self.chance.choice(self.originals)
        return request[: self._place(request)] + other[self._place(other) :]

    def _truncate(self, request: bytes) -> bytes:
        return request[: self._place(request)]

    def _insert(self, request: bytes) -> bytes:
        at = self._place(request)
        return request[:at] + self.chance.choice(_ODD_BYTES) + request[at:]

    def _shuffle(self, request: bytes) -> bytes:
        """Return it with header lines doubled, left out, in another order, or without an end."""
        line, headers, body = _parts(request)
        headers = self.chance.choices(headers, k=self.chance.choice((1, 3, len(headers), 300)))
        return _join(line, headers, body)

    def _length(self, request: bytes) -> bytes:
        line, headers, body = _parts(request)
        other_headers = [
            header for header in headers if not header.lower().startswith(b"content-length")
        ]
        lengths = self.chance.choices(_NUMBERS, k=self.chance.choice((1, 1, 2)))
        return _join(
            line,
            [*other_headers, *(f"Content-Length: {length}".encode() for length in lengths)],
            body,
        )

    def _chunks(self, request: bytes) -> bytes:
        line, headers, body = _parts(request)
        if self.chance.random() < 0.8:
            headers = [
                header for header in headers if not header.lower().startswith(b"content-length")
            ]
        sizes = (f"{len(body):x}", f"{len(body):X};a=b", f"000{len(body):x}", *_NUMBERS, "f" * 17)
        ends = (
            b"0\r\n\r\n",
            b"0\r\nA: b\r\n\r\n",
            b"0\r\n",
            b"",
            b"-1\r\n\r\n",
            b"0\r\n" + b"a: b\r\n" * 99,
        )
        chunk = self.chance.choice(sizes).encode() + _BREAK + body + _BREAK
        chunked_body = chunk * self.chance.choice((1, 1, 2)) + self.chance.choice(ends)
        return _join(line, [*headers, b"Transfer-Encoding: chunked"], chunked_body)

    def _fields(self, request: bytes) -> bytes:
        line, headers, body = _parts(request)
        for name in self.chance.sample([*_FIELDS], self.chance.choice((1, 2, 5))):
            if self.chance.random() < 0.5:
                start = name.lower().encode() + b":"
                headers = [header for header in headers if not header.lower().startswith(start)]
            value = self.chance.choice(_FIELDS[name])
            headers.append(f"{name}: {value}".encode("latin-1"))
        return _join(line, headers, body)

    def _line(self, request: bytes) -> bytes:
        _, headers, body = _parts(request)
        return _join(self.chance.choice(_LINES), headers, body)

    def _pipeline(self, request: bytes) -> bytes:
        parts = [request] * self.chance.choice((2, 5, 20))
        parts[self.chance.randrange(len(parts))] = self._insert(request)
        return b"".join(parts)

    def _noise(self, _: bytes) -> bytes:
        return self.chance.randbytes(self.chance.choice((1, 10, 100, 5000, 70_000)))

    def _place(self, request: bytes) -> int:
        """Return a place in it, more often in its head than in a long body."""
        head = request.find(_BREAK * 2) + 4
        return self.chance.randrange(head if self.chance.random() < 0.7 else len(request))


def _parts(request: bytes) -> tuple[bytes, list[bytes], bytes]:
    head, _, body = request.partition(_BREAK * 2)
    line, *headers = head.split(_BREAK)
    return line, headers, body


def _join(line: bytes, headers: Sequence[bytes], body: bytes) -> bytes:
    return _BREAK.join([line, *headers, b"", body])
