"""What strangers try on a real server: BentoML's and uvicorn's own answers included."""

import socket

import httpx
import pytest

from tests.servers import Server

PICKLE = "application/vnd.bentoml+pickle"
PATHS = [
    "/livez",
    "/readyz",
    "/healthz",
    "/health",
    "/metrics",
    "/docs",
    "/docs.json",
    "/schema.json",
    "/static_content/swagger-ui.css",
    "/static_content/missing",
    "/elsewhere",
]


def exchange(server: Server, request: str) -> str:
    """Send bytes as they are, and return all that comes back until the server hangs up."""
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port or 80), timeout=30) as connection:
        connection.sendall(request.encode("latin-1"))
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode("latin-1")


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_is_locked_down_and_names_no_server(server: Server, path: str) -> None:
    with server.client() as client:
        answer = client.get(path, headers={"Origin": "https://elsewhere.example"})
        preflight = client.options(path, headers={"Access-Control-Request-Method": "POST"})
    for response in (answer, preflight):
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
        assert "Server" not in response.headers
        assert not [name for name in response.headers if name.startswith("access-control-")]
    assert preflight.status_code in {404, 405}


def test_what_bentoml_answers_itself_names_no_server(server: Server, token: str) -> None:
    with server.client(token) as client:
        answer = client.post("/predict", json={"inputs": ["hello"]})
    assert answer.status_code == 200
    assert "Server" not in answer.headers
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", [*PATHS, "/predict", "/api/v1/predict"])
def test_a_pickle_is_refused_everywhere(server: Server, path: str) -> None:
    with server.client() as client:
        answer = client.post(path, content=b"\x80\x04N.", headers={"Content-Type": PICKLE})
    assert answer.status_code == 415


@pytest.mark.parametrize(
    "path",
    [
        "/static_content/../app.py",
        "/static_content/%2e%2e/app.py",
        "/static_content/..%2fapp.py",
        "/static_content/%2fetc%2fpasswd",
        "/static_content/%00",
        "//livez",
        "/./livez",
        "/livez/",
        "/LIVEZ",
        "/elsewhere/../livez",
    ],
)
def test_a_crooked_path_leads_nowhere(server: Server, path: str) -> None:
    answer = exchange(server, f"GET {path} HTTP/1.1\r\nHost: kaiten\r\nConnection: close\r\n\r\n")
    assert answer.startswith("HTTP/1.1 404 ")


SMUGGLED = "GET /docs.json HTTP/1.1\r\nHost: kaiten\r\n\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        "Content-Length: 0\r\nTransfer-Encoding: chunked",
        f"Content-Length: {len(SMUGGLED)}\r\nContent-Length: 0",
        f"Content-Length: {len(SMUGGLED)}, 0",
        "Content-Length: +0",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding : chunked",
    ],
)
def test_a_request_of_two_lengths_is_refused_and_none_is_smuggled_behind_it(
    server: Server, headers: str
) -> None:
    request = f"POST /predict HTTP/1.1\r\nHost: kaiten\r\n{headers}\r\n\r\n0\r\n\r\n{SMUGGLED}"
    answer = exchange(server, request)
    assert answer.startswith("HTTP/1.1 400 ")
    assert answer.count("HTTP/1.1") == 1
    assert "openapi" not in answer


@pytest.mark.parametrize("forwarded", ["203.0.113.9", "127.0.0.1, 203.0.113.9"])
def test_a_caller_behind_a_proxy_can_not_say_that_it_is_on_this_machine(
    server: Server, token: str, forwarded: str
) -> None:
    with server.client(token) as client:
        body = {"text": "hello"}
        answer = client.post("/api/v1/predict", json=body, headers={"X-Forwarded-For": forwarded})
    assert answer.json()["error"]["code"] == "loopback_only"


OFFER = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", ["/predict", "/api/v2/predict"])
def test_an_offer_to_upgrade_is_answered_as_http_1_and_smuggles_nothing(
    server: Server,
    token: str,
    path: str,
    chunked: bool,  # noqa: FBT001
) -> None:
    body = '{"inputs": ["hello"]}'
    if chunked:
        framing, sent = "Transfer-Encoding: chunked", f"{len(body):x}\r\n{body}\r\n0\r\n\r\n"
    else:
        framing, sent = f"Content-Length: {len(body)}", body
    answer = exchange(
        server,
        f"POST {path} HTTP/1.1\r\nHost: kaiten\r\nAuthorization: Bearer {token}\r\n{OFFER}"
        f"Content-Type: application/json\r\n{framing}\r\n\r\n{sent}"
        "GET /livez HTTP/1.1\r\nHost: kaiten\r\nConnection: close\r\n\r\n",
    )
    assert answer.count("HTTP/1.1 200 ") == answer.count("HTTP/1.1") == 2
    answer = exchange(
        server,
        f"POST {path} HTTP/1.1\r\nHost: kaiten\r\n{OFFER}Content-Length: {len(SMUGGLED)}\r\n\r\n"
        f"{SMUGGLED}GET /livez HTTP/1.1\r\nHost: kaiten\r\nConnection: close\r\n\r\n",
    )
    assert "openapi" not in answer


def test_a_websocket_is_not_opened_past_the_edge(server: Server) -> None:
    answer = exchange(
        server,
        "GET /elsewhere HTTP/1.1\r\nHost: kaiten\r\nConnection: Upgrade, close\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )
    assert answer.startswith("HTTP/1.1 404 ")
