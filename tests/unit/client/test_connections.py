"""Clients in forks: real processes, and a real server that answers each text with itself."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from kaiten_client import AsyncClient, Client, MismatchedAnswer, PredictResponse
from kaiten_client.target import proxy_mounts
from tests.servers import ROOT
from tests.unit.client.forking import Orders
from tests.unit.client.house import BOTH, GOOD, House

# A pool that is discarded may carry requests of other threads, so the garbage collector closes it.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket")
FOR_ANOTHER = "for another"
TEXTS = [f"text {number}" for number in range(500)]


class Echo(BaseHTTPRequestHandler):
    """Answers each text with itself as its label."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_POST(self) -> None:
        (text,) = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"]
        prediction = GOOD["predictions"][0] | {"label": text}
        request_id = "other" if text == FOR_ANOTHER else self.headers["X-Request-ID"]
        body = json.dumps(GOOD | {"predictions": [prediction], "request_id": request_id}).encode()
        self.send_response(200)
        self.send_header("X-Request-ID", request_id)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Counting(ThreadingHTTPServer):
    """Counts connections."""

    daemon_threads = True
    count = 0

    def get_request(self) -> tuple[socket.socket, object]:
        self.count += 1
        return super().get_request()


@pytest.fixture
def echo() -> Iterator[Counting]:
    with Counting(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def url_of(server: Counting) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def run(orders: Orders) -> list[list[str]]:
    """Return client, text and outcome of all requests of a program that forks."""
    process = subprocess.run(
        [sys.executable, "-m", "tests.unit.client.forking"],
        input=json.dumps(asdict(orders)),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}"},
        timeout=120,
        check=True,
    )
    rows: list[list[str]] = json.loads(process.stdout)
    return rows


@BOTH
def test_every_answer_is_its_own_in_forks(echo: Counting, kind: str) -> None:
    rows = run(Orders(url_of(echo), kind, TEXTS, forks=2))
    assert sum(client_name == "child" for client_name, _, _ in rows) == 2 * 4 * 2
    assert [row for row in rows if row[1] != row[2]] == []


def test_a_parent_keeps_its_connection_and_each_child_opens_one(echo: Counting) -> None:
    rows = run(Orders(url_of(echo), "sync", TEXTS, forks=1, threads=0))
    assert [row for row in rows if row[1] != row[2]] == []
    assert echo.count == 1 + 4


def test_custom_transport_is_rejected_in_a_fork(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House("sync")
    client = house.client()
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    with pytest.raises(RuntimeError, match="belongs to the process that created it"):
        client.predict(["a"])
    assert house.script.requests == []


def test_a_fork_does_not_open_a_client_that_its_parent_has_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Client("http://127.0.0.1:1")
    client.close()
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    with pytest.raises(RuntimeError, match="has been closed"):
        client.predict(["a"])


def test_a_fork_leaves_its_parents_connections_open(
    echo: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(url_of(echo)) as client:
        client.predict(["a"])
        pid = os.getpid()
        with monkeypatch.context() as child:
            child.setattr(os, "getpid", lambda: pid + 1)
            client.close()
        assert client.predict(["b"]).predictions[0].label == "b"
    assert echo.count == 1


def test_a_connection_with_anothers_answer_is_not_used_again(echo: Counting) -> None:
    with Client(url_of(echo)) as client:
        client.predict(["a"])
        with pytest.raises(MismatchedAnswer, match="names the request other"):
            client.predict([FOR_ANOTHER])
        assert client.predict(["c"]).predictions[0].label == "c"
    assert echo.count == 2


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.8.8.8", "a.localhost"])
def test_a_server_on_this_machine_is_not_asked_through_a_proxy(host: str) -> None:
    for scheme in ("http", "https"):
        url = httpx.URL(f"{scheme}://{host}:3000")
        assert proxy_mounts(url, {}) == {f"all://{host}": None}
        assert proxy_mounts(url, {"proxy": None}) == {f"all://{host}": None}
        assert proxy_mounts(url, {"proxy": "http://192.0.2.2:3128"}) == {}


@pytest.mark.parametrize("host", ["kaiten.example", "10.0.0.1", "localhost.example", "[2001::1]"])
def test_others_are_asked_through_the_proxy_of_the_environment(host: str) -> None:
    assert proxy_mounts(httpx.URL(f"http://{host}"), {}) == {}


@BOTH
def test_a_proxy_that_does_not_answer_is_not_in_the_way(
    echo: Counting, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    if kind == "sync":
        with Client(url_of(echo)) as client:
            answer = client.predict(["a"])
    else:
        answer = asyncio.run(predict_async(url_of(echo)))
    assert answer.predictions[0].label == "a"


async def predict_async(url: str) -> PredictResponse:
    async with AsyncClient(url) as client:
        return await client.predict(["a"])
