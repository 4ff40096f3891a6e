"""What reaches the server through nginx as we ship it, and what nginx answers in its place."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.nginx import NGINX, Proxy, proxying
from tests.e2e.upstream import Upstream, listening
from tests.e2e.wire import Connection, get, post
from tests.servers import TLS, Server, free_port

pytestmark = [
    pytest.mark.skipif(NGINX is None, reason="needs nginx: apt-get install nginx-light"),
]
BODY_LIMIT = 4 * 1024 * 1024
# Everything is quick here, so that nothing waits for what a slow caller never sends.
IMPATIENT = {
    "client_header_timeout 10s": "client_header_timeout 200ms",
    "client_body_timeout 10s": "client_body_timeout 200ms",
    "limit_conn kaiten_callers 64": "limit_conn kaiten_callers 2",
    # So that a caller from 127.0.0.2 is one from elsewhere.
    "127.0.0.0/8    1;": "127.0.0.1/32   1;",
}


@pytest.fixture(scope="module")
def proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """nginx before the real server."""
    with proxying(tmp_path_factory.mktemp("nginx"), httpx.URL(server.url).port or 0) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def inner() -> Iterator[Upstream]:
    with listening() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def impatient(inner: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """nginx with short limits, before what keeps each request."""
    with proxying(tmp_path_factory.mktemp("impatient"), inner.port, IMPATIENT) as proxy:
        yield proxy


def prediction(token: str) -> bytes:
    body = b'{"text": "Where is my parcel?"}'
    return post(
        "/api/v1/predict",
        body,
        f"Authorization: Bearer {token}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )


CHUNKED = "Transfer-Encoding: chunked"
MALFORMED = {
    "garbage": b"\x16\x03\x01 garbage\r\n\r\n",
    "request line of one word": b"GET\r\n\r\n",
    "method in lower case": b"get /livez HTTP/1.1\r\nHost: kaiten\r\n\r\n",
    "HTTP/2 without TLS": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/3.0": b"GET /livez HTTP/3.0\r\nHost: kaiten\r\n\r\n",
    "no Host": b"GET /livez HTTP/1.1\r\n\r\n",
    "two Hosts": get("/livez", "Host: other"),
    "Host that is a path": b"GET /livez HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "NUL in a header": get("/livez", "X-Note: a\0b"),
    "space before a colon": get("/livez", "X-Note : a"),
    "folded header": get("/livez", "X-Note: a\r\n b"),
    "CONNECT": b"CONNECT kaiten:80 HTTP/1.1\r\nHost: kaiten\r\n\r\n",
    "TRACE": get("/livez").replace(b"GET", b"TRACE", 1),
    "unknown method": get("/livez").replace(b"GET", b"BREW", 1),
    "OPTIONS *": b"OPTIONS * HTTP/1.1\r\nHost: kaiten\r\n\r\n",
    "%00": get("/livez%00"),
    "bytes over 127 in the path": get("/liv\xe9z"),
    "out of the root": get("/%2e%2e/%2e%2e/etc/passwd"),
    "two lengths": post("/predict", b"abcd", "Content-Length: 3", "Content-Length: 4"),
    "negative length": post("/predict", b"", "Content-Length: -3"),
    "length and chunks": post("/predict", b"0\r\n\r\n", "Content-Length: 5", CHUNKED),
    "chunks in HTTP/1.0": post("/predict", b"0\r\n\r\n", CHUNKED).replace(b"1.1", b"1.0", 1),
    "unknown transfer coding": post("/predict", b"0\r\n\r\n", "Transfer-Encoding: xchunked"),
    "chunk size that is no number": post("/predict", b"zz\r\n\r\n", CHUNKED),
    "chunk size that overflows": post("/predict", b"f" * 40 + b"\r\n", CHUNKED),
}
REFUSED = {name: (request, 400, "malformed_request") for name, request in MALFORMED.items()} | {
    "header over the limit": (get("/livez", "X-Note: " + "a" * 20_000), 431, "headers_too_large"),
    "too many headers": (get("/livez", *["X-Note: a" * 5] * 5000), 431, "headers_too_large"),
    "long address": (get("/" + "a" * 20_000), 414, "uri_too_long"),
    "1 GB": (post("/predict", b"", "Content-Length: 1073741824"), 413, "body_too_large"),
    "1 GB in chunks": (post("/predict", b"40000000\r\n", CHUNKED), 413, "body_too_large"),
    # From here on, the server's own answers.
    "two slashes": (get("//livez"), 404, "not_found"),
    "line feed in the path": (get("/livez%0a"), 404, "not_found"),
    "dots that lead to a route": (get("/x/%2e%2e/livez"), 404, "not_found"),
    "method of no route": (get("/livez").replace(b"GET", b"PUT", 1), 405, "method_not_allowed"),
    "no token": (post("/predict", b"{}", "Content-Length: 2"), 401, "unauthenticated"),
    "the longest token": (
        post("/predict", b"", "Authorization: Bearer " + "a" * 8192, "Content-Length: 0"),
        401,
        "unauthenticated",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_request_gets_the_envelope_and_harms_no_good_one(
    proxy: Proxy, token: str, name: str
) -> None:
    request, status, code = REFUSED[name]
    with Connection(proxy.port) as beside, Connection(proxy.port) as connection:
        beside.send(prediction(token))
        answer = connection.ask(request + prediction(token))

        assert (answer.status, answer.error["code"]) == (status, code)
        assert answer.headers["Server"] == "nginx"
        # What follows a bad request is read as what it is, or not at all.
        if answer.headers["Connection"] == "close":
            assert connection.rest() == b""
        else:
            assert (follower := connection.answer()) is not None
            assert follower.status == 200
        assert (other := beside.answer()) is not None
        assert other.status == 200


def test_http_0_9_gets_the_envelope_without_a_header(proxy: Proxy) -> None:
    with Connection(proxy.port) as connection:
        connection.send(b"GET /livez\r\n")
        assert json.loads(connection.rest())["error"]["code"] == "malformed_request"


ODD_AND_GOOD = {
    "absolute address": get("http://elsewhere/livez"),
    "header without a colon": get("/livez", "nothing"),
    "headers with odd names": get("/livez", "X_Note: a", "X(Note): b"),
    "line feeds alone": get("/livez").replace(b"\r\n", b"\n"),
    "upgrade to WebSocket": get("/livez", "Upgrade: websocket", "Connection: Upgrade"),
    "upgrade to HTTP/2": get("/livez", "Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings"),
}


@pytest.mark.parametrize("name", ODD_AND_GOOD)
def test_odd_request_with_one_meaning_is_answered(proxy: Proxy, token: str, name: str) -> None:
    with Connection(proxy.port) as connection:
        assert connection.ask(ODD_AND_GOOD[name]).status == 200
        assert connection.ask(prediction(token)).status == 200


def test_body_in_chunks_and_one_that_is_waited_for_reach_the_model(
    proxy: Proxy, token: str
) -> None:
    usual = prediction(token)
    head, _, body = usual.partition(b"\r\n\r\n")
    head, _, length = head.rpartition(b"\r\n")
    chunks = b"".join(b"1;note=x\r\n%c\r\n" % byte for byte in body)
    with Connection(proxy.port) as connection:
        in_chunks = connection.ask(
            head + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nNote: x\r\n\r\n"
        )
        connection.send(head + b"\r\n" + length + b"\r\nExpect: 100-continue\r\n\r\n")
        assert connection.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        waited_for = connection.ask(body)

    assert json.loads(in_chunks.body)["label"] == json.loads(waited_for.body)["label"]


@pytest.mark.parametrize(("size", "status"), [(BODY_LIMIT, 422), (BODY_LIMIT + 1, 413)])
def test_nginx_lets_in_as_much_as_the_server_takes(
    proxy: Proxy, token: str, size: int, status: int
) -> None:
    frame = b'{"inputs": ["%s"]}'
    body = frame % (b"a" * (size - len(frame) + 2))
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    answer = httpx.post(
        f"http://127.0.0.1:{proxy.port}/predict", content=body, headers=headers, verify=TLS
    )
    assert (len(body), answer.status_code) == (size, status)


def test_callers_own_request_id_reaches_the_answer_and_a_bad_one_does_not(proxy: Proxy) -> None:
    with Connection(proxy.port) as connection:
        accepted = connection.ask(get("/livez", "X-Request-ID: mine"))
        refused = connection.ask(get("/kaiten_error", "X-Request-ID: mine"))
        replaced = connection.ask(get("/kaiten_error", 'X-Request-ID: "}'))

    assert accepted.headers.get_all("X-Request-ID") == ["mine"]
    assert refused.error["request_id"] == "mine"
    assert replaced.error["request_id"] != '"}'


def test_tls_speaks_http_2_and_asks_callers_to_stay(proxy: Proxy) -> None:
    command = ["curl", "-s", "-i", "--http2", "--cacert", str(proxy.folder / "kaiten.crt")]
    url = f"https://127.0.0.1:{proxy.tls_port}/livez"
    output = subprocess.run([*command, url], check=True, capture_output=True, text=True).stdout

    assert output.startswith("HTTP/2 200")
    assert "strict-transport-security: max-age=31536000" in output


def test_plain_http_on_the_port_for_tls_is_rejected(proxy: Proxy) -> None:
    with Connection(proxy.tls_port) as connection:
        answer = connection.ask(get("/livez"))
    assert (answer.status, answer.error["code"]) == (400, "malformed_request")


def test_log_has_the_fields_of_ours_and_nothing_private(
    server: Server, token: str, tmp_path: Path
) -> None:
    with proxying(tmp_path, httpx.URL(server.url).port or 0) as proxy:
        with Connection(proxy.port) as connection:
            connection.ask(get("/livez?secret=canary", f"Authorization: Bearer {token}"))
            connection.ask(get("/canary"))
            connection.ask(post("/predict", b"", "Content-Length: 1073741824"))
        with Connection(proxy.port) as connection:
            connection.ask(b"canary\r\n\r\n")
    lines = [json.loads(line) for line in proxy.access_log.splitlines()]
    entries = [(line["method"], line["route"], line["status"], line["level"]) for line in lines]

    assert entries == [
        ("GET", "/livez", 200, "info"),
        ("GET", "", 404, "info"),
        ("POST", "/predict", 413, "info"),
        ("", "", 400, "info"),
    ]
    field_names = {"timestamp", "level", "logger", "event", "request_id", "duration_ms"}
    assert all(set(line) > field_names for line in lines)
    log_text = proxy.access_log + (tmp_path / "error.log").read_text(encoding="utf-8")
    assert "canary" not in log_text
    assert token not in log_text


def test_unavailable_server_is_reported_in_the_envelope(tmp_path: Path) -> None:
    with proxying(tmp_path, free_port()) as proxy, Connection(proxy.port) as connection:
        answer = connection.ask(get("/livez"))
    assert (answer.status, answer.error["code"]) == (502, "bad_gateway")
    assert answer.headers["Retry-After"] == "1"


def test_slow_headers_end_the_connection_and_reach_nobody(
    impatient: Proxy, inner: Upstream
) -> None:
    with Connection(impatient.port) as connection:
        connection.send(b"GET /livez HTTP/1.1\r\nHost: kai")
        assert connection.answer() is None
    assert inner.rest() == []


def test_slow_body_ends_the_connection_and_reaches_nobody(
    impatient: Proxy, inner: Upstream
) -> None:
    with Connection(impatient.port) as connection:
        connection.send(post("/predict", b'{"te', "Content-Length: 20"))
        assert connection.answer() is None
    assert inner.rest() == []


def test_what_callers_say_of_themselves_is_replaced(impatient: Proxy, inner: Upstream) -> None:
    headers = [
        "X-Forwarded-For: 203.0.113.9",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: evil",
        "X-Forwarded-Port: 1",
        "X-Real-IP: 203.0.113.9",
        "Forwarded: for=203.0.113.9",
        "X_Forwarded_For: 203.0.113.9",
        "Connection: X-Forwarded-For, close",
        "TE: trailers",
        "X-Request-ID: mine",
    ]
    with Connection(impatient.port) as connection:
        assert connection.ask(get("/livez?a=%41", *headers)).headers["Server"] == "nginx"

    assert inner.next().decode().splitlines() == [
        "GET /livez?a=%41 HTTP/1.1",
        "Host: kaiten",
        "X-Request-ID: mine",
        "X-Forwarded-For: 127.0.0.1",
        "X-Forwarded-Proto: http",
        "",
    ]


def test_a_request_that_broke_off_is_never_sent_twice(impatient: Proxy, inner: Upstream) -> None:
    with Connection(impatient.port) as connection:
        # Leaves nginx a connection to the server that it takes again.
        connection.ask(get("/livez"))
        answer = connection.ask(post("/cut", b"ab", "Content-Length: 2"))

    assert (answer.status, answer.error["code"]) == (502, "bad_gateway")
    sent = [request.partition(b" ")[0] for request in inner.rest()]
    assert sent == [b"GET", b"POST"]


def test_one_address_has_so_many_requests_at_once(impatient: Proxy, inner: Upstream) -> None:
    with Connection(impatient.port) as first, Connection(impatient.port) as second:
        for connection in (first, second):
            connection.send(get("/hold"))
            inner.next()
        with Connection(impatient.port) as third:
            refused = third.ask(get("/livez"))
        with Connection(impatient.port, "127.0.0.2") as elsewhere:
            assert elsewhere.ask(get("/livez")).status == 200
        inner.let_go.set()
        held = [connection.answer() for connection in (first, second)]

    assert (refused.status, refused.error["code"]) == (429, "too_many_requests")
    assert refused.headers["Retry-After"] == "1"
    assert [answer.status for answer in held if answer] == [200, 200]
    inner.rest()


HIDDEN = ("/metrics", "/docs", "/docs.json", "/schema.json", "/static_content/swagger-ui.css", "/")
DISGUISED = ("/%6detrics", "/x/../metrics", "/./metrics", "/static_content/..%2fmetrics")


@pytest.mark.parametrize("path", [*HIDDEN, *DISGUISED, "/metrics?a=b", "/metrics#a"])
def test_metrics_and_docs_are_for_private_networks(
    impatient: Proxy, inner: Upstream, path: str
) -> None:
    with (
        Connection(impatient.port, "127.0.0.2") as outside,
        Connection(impatient.port) as inside,
    ):
        hidden = outside.ask(get(path))
        assert inner.rest() == []
        open_page = inside.ask(get(path))
        healthy = outside.ask(get("/readyz"))

    assert (hidden.status, hidden.error["code"]) == (404, "not_found")
    assert (open_page.status, healthy.status) == (200, 200)
    assert len(inner.rest()) == 2
