"""The path of a request through the real server, with the real model, over two workers."""

import json
import re
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import bentoml
import httpx
import jwt
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.acceptance.watch import Watch
from tests.servers import QUICKSTART, Server, environment, serving

SAME = 1e-4


def predictions(client: httpx.Client, inputs: list[str]) -> list[dict[str, object]]:
    answer = client.post("/api/v2/predict", json={"inputs": inputs})
    assert answer.status_code == 200, answer.text
    results: list[dict[str, object]] = answer.json()["predictions"]
    return results


def stats(server: Server, route: str) -> dict[str, Any]:
    """Return what /ops/stats tells of a route, whichever worker answers."""
    with server.client(server.token("operator", "ops")) as client:
        routes = client.get("/ops/stats").json()["routes"]
    (route_stats,) = [row for row in routes if row["route"] == route]
    return dict(route_stats)


def count_requests(metrics: str) -> float:
    return sum(
        sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == "model_requests_total"
    )


def test_exactly_500_requests_over_two_workers_are_counted(
    server: Server, token: str, bentoml_home: Path
) -> None:
    with server.client(token) as client:
        before = count_requests(client.get("/metrics").text)
    before_stats = stats(server, "/api/v1/predict")

    def ask(_: int) -> int:
        # A connection of its own, so that both workers get some.
        with server.client(token) as client:
            return client.post("/api/v1/predict", json={"text": "Where is it?"}).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = set(pool.map(ask, range(500)))

    with server.client() as client:
        after = count_requests(client.get("/metrics").text)
    # BentoML's processes share one folder a server, and each writes a file of its own.
    processes = psutil.Process(server.process.popen.pid).children(recursive=True)
    folders = bentoml_home / "prometheus_multiproc_dir"
    assert len([*folders.glob(f"*.{processes[0].pid}/counter_*.db")]) == 2
    assert statuses == {200}
    assert after - before == 500
    # Each on a connection of its own, so that both workers are asked: they tell the same.
    snapshots = [stats(server, "/api/v1/predict") for _ in range(6)]
    first = snapshots[0]
    assert all(snapshot == first for snapshot in snapshots)
    assert first["count"] - before_stats["count"] == 500
    assert first["errors"] == before_stats["errors"]
    assert 0 < first["min_ms"] <= first["p50_ms"] <= first["p99_ms"] <= first["max_ms"]
    assert first["min_ms"] <= first["mean_ms"] <= first["max_ms"]


def test_both_workers_get_connections_of_a_small_pool(server: Server) -> None:
    port = httpx.URL(server.url).port
    workers = Watch(server.process.popen.pid).workers()
    with ExitStack() as stack:
        for _ in range(8):
            # Kept alive until the count.
            stack.enter_context(server.client()).get("/livez")
        connections = [
            sum(
                connection.laddr.port == port and connection.status == psutil.CONN_ESTABLISHED
                for connection in worker.net_connections("tcp")
            )
            for worker in workers
        ]
    assert sum(connections) >= 8
    # All in one of them, mostly the same one, without the acceptor's share.
    assert min(connections) >= 2


def test_two_servers_on_one_model_store_count_apart(
    server: Server, token: str, bentoml_home: Path, tmp_path: Path
) -> None:
    with server.client(token) as client:
        before = count_requests(client.get("/metrics").text)
    with (
        serving(environment(bentoml_home, tmp_path)) as other,
        other.client(other.token()) as client,
    ):
        client.post("/api/v1/predict", json={"text": "Where is it?"}).raise_for_status()
        other_count = count_requests(client.get("/metrics").text)
    with server.client(token) as client:
        after = count_requests(client.get("/metrics").text)

    assert (other_count, after) == (1, before)


def test_invented_paths_add_no_series(server: Server) -> None:
    with server.client() as client:
        lines = len(client.get("/metrics").text.splitlines())
        statuses = {client.get(f"/invented/{number}").status_code for number in range(1500)}

        assert statuses == {404}
        assert len(client.get("/metrics").text.splitlines()) == lines


def test_printed_curl_line_returns_the_correct_intent(server: Server) -> None:
    line = next(line for line in server.process.lines if line.startswith("curl "))
    done = subprocess.run(["bash", "-c", line], check=True, capture_output=True, text=True)
    answer = json.loads(done.stdout)
    assert (answer["label"], answer["model"]) == ("order_status", "support-intent:1.0.0")


def test_quickstart_model_holds_its_accuracy_over_http(server: Server, token: str) -> None:
    rows = [
        json.loads(line)
        for line in (QUICKSTART / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    with server.client(token) as client:
        answers = predictions(client, [row["text"] for row in rows])
    correct_count = sum(
        row["label"] == answer["label"] for row, answer in zip(rows, answers, strict=True)
    )

    assert correct_count / len(rows) >= 0.90


def test_alone_and_in_a_mixed_batch_of_64_are_the_same(
    server: Server, token: str, texts: list[str]
) -> None:
    batch = sorted(texts, key=len)[:: len(texts) // 64][:64]
    with server.client(token) as client:
        batch_predictions = predictions(client, batch)
        single_predictions = [predictions(client, [text])[0] for text in batch]

    assert [prediction["label"] for prediction in single_predictions] == [
        prediction["label"] for prediction in batch_predictions
    ]
    assert [prediction["score"] for prediction in single_predictions] == pytest.approx(
        [prediction["score"] for prediction in batch_predictions], abs=SAME
    )


def test_2000_requests_from_32_connections_each_get_their_own_answer(
    server: Server, token: str, texts: list[str]
) -> None:
    assert len(set(texts)) == 2000
    with server.client(token) as client:
        expected = [
            answer
            for start in range(0, len(texts), 200)
            for answer in predictions(client, texts[start : start + 200])
        ]

    def ask(lane: int) -> list[dict[str, object]]:
        with server.client(token) as client:
            return [predictions(client, [text])[0] for text in texts[lane::32]]

    with ThreadPoolExecutor(32) as pool:
        lanes = list(pool.map(ask, range(32)))

    for lane, answers in enumerate(lanes):
        expected_answers = expected[lane::32]
        assert [answer["label"] for answer in answers] == [
            answer["label"] for answer in expected_answers
        ]
        assert [answer["score"] for answer in answers] == pytest.approx(
            [answer["score"] for answer in expected_answers], abs=SAME
        )


def test_bentoml_client_gets_the_same_answer(server: Server, token: str) -> None:
    with bentoml.SyncHTTPClient(server.url, token=token) as client:
        answer = client.predict(inputs=["I forgot my password"], top_k=2)

    assert answer["model"] == "support-intent:1.0.0"
    assert answer["predictions"][0]["label"] == "login_problem"
    assert len(answer["predictions"][0]["top_k"]) == 2


@pytest.mark.parametrize("path", ["/api/v1/predict", "/api/v2/predict", "/predict"])
def test_no_good_token_is_401(server: Server, path: str) -> None:
    secret = (Path(server.env["KAITEN_HOME"]) / "development.secret").read_text(encoding="ascii")
    claims = {"sub": "x", "scope": "predict", "iss": "kaiten", "aud": "kaiten", "exp": 1 << 40}
    tokens = {
        "expired": jwt.encode(claims | {"exp": 1}, secret),
        "alg none": jwt.encode(claims, "", algorithm="none"),
        "wrong audience": jwt.encode(claims | {"aud": "other"}, secret),
        "other secret": jwt.encode(claims, "x" * 32),
        "good": jwt.encode(claims, secret),
    }
    body = {"text": "hello"} if "v1" in path else {"inputs": ["hello"]}
    with server.client() as client:
        statuses = {
            name: client.post(path, json=body, headers={"Authorization": f"Bearer {token}"})
            for name, token in tokens.items()
        }
        statuses["no token"] = client.post(path, json=body)

    assert {name: answer.status_code for name, answer in statuses.items()} == {
        "no token": 401,
        "expired": 401,
        "alg none": 401,
        "wrong audience": 401,
        "other secret": 401,
        "good": 200,
    }


def test_missing_scope_is_403(server: Server) -> None:
    with server.client(server.token("x", "ops")) as client:
        answer = client.post("/api/v1/predict", json={"text": "hello"})

    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "forbidden"


@pytest.mark.parametrize("path", ["/api/v1/predict", "/api/v2/predict", "/predict"])
def test_path_that_only_a_router_takes_for_the_route_is_unknown(server: Server, path: str) -> None:
    with server.client() as client:
        answer = client.post(f"{path}%0A", json={"inputs": [1] * 100_000})

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


def test_what_a_caller_who_leaves_had_asked_is_dropped(
    server: Server, token: str, texts: list[str]
) -> None:
    body = json.dumps({"inputs": [" ".join(texts[:20])] * 256}).encode()
    head = (
        f"POST /api/v2/predict HTTP/1.1\r\nHost: kaiten\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port or 80)) as connection:
        connection.sendall(head.encode() + body)

    line = json.loads(server.process.wait_for('"status": 499')[0])
    assert line["route"] == "/api/v2/predict"


def test_development_secret_serves_this_machine_only(server: Server, token: str) -> None:
    # uvicorn believes X-Forwarded-For from a proxy on this machine.
    with server.client(token) as client:
        answer = client.post(
            "/api/v1/predict", json={"text": "hi"}, headers={"X-Forwarded-For": "203.0.113.9"}
        )

    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "loopback_only"


BAD_BODIES = {
    "malformed JSON": (b'{"inputs": [', "body", 400),
    "wrong type": (b'{"inputs": "a"}', "inputs", 422),
    "unknown field": (b'{"inputs": ["a"], "spy": 1}', "spy", 422),
    "empty text": (b'{"inputs": ["a", ""]}', "inputs.1", 422),
    "1 MB of text": (b'{"inputs": ["' + b"canary " * 150_000 + b'"]}', "inputs.0", 422),
    "10,000 inputs": (b'{"inputs": [' + b'"canary",' * 9_999 + b'"a"]}', "inputs", 422),
    "NUL": (b'{"inputs": ["canary\\u0000"]}', "inputs.0", 422),
    "lone surrogate": (b'{"inputs": ["canary\\ud800"]}', "inputs.0", 422),
    "over the limit": (b'{"inputs": ["' + b"canary " * 700_000 + b'"]}', "body", 413),
}


@pytest.mark.parametrize("path", ["/api/v2/predict", "/predict"])
@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_input_names_the_field_and_the_server_lives_on(
    server: Server, token: str, path: str, name: str
) -> None:
    body, field, status = BAD_BODIES[name]
    headers = {"Content-Type": "application/json"}
    with server.client(token) as client:
        answer = client.post(path, content=body, headers=headers)
        next_answer = client.post(path, json={"inputs": ["hello"]})

    assert answer.status_code == status
    assert [detail["field"] for detail in answer.json()["error"]["details"]] == [field]
    assert "canary" not in answer.text
    assert next_answer.status_code == 200


@pytest.mark.parametrize("path", ["/api/v1/predict", "/api/v2/predict", "/predict"])
@pytest.mark.parametrize("content_type", ["text/plain", "application/vnd.bentoml+pickle"])
def test_other_content_types_are_415(
    server: Server, token: str, path: str, content_type: str
) -> None:
    with server.client(token) as client:
        answer = client.post(path, content=b"\x80\x04N.", headers={"Content-Type": content_type})

    assert answer.status_code == 415
    assert answer.json()["error"]["details"][0]["field"] == "Content-Type"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("GET", "/api/v1/predict", 405),
        ("POST", "/livez", 405),
        ("POST", "/health", 405),
    ],
)
def test_every_failure_comes_in_the_envelope(
    server: Server, token: str, method: str, path: str, status: int
) -> None:
    with server.client(token) as client:
        answer = client.request(method, path, headers={"X-Request-ID": "mine"})

    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"code", "message", "details", "request_id"}
    assert answer.json()["error"]["request_id"] == answer.headers["X-Request-ID"] == "mine"


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz", "/health", "/schema.json"])
def test_open_routes_answer_without_a_token(server: Server, path: str) -> None:
    with server.client() as client:
        assert client.get(path).status_code == 200


def test_docs_page_and_documents_come_from_this_server_alone(server: Server) -> None:
    with server.client() as client:
        page = client.get("/docs")
        parts = re.findall(r'(?:src=|href=|url: )"([^"]+)"', page.text)
        statuses = {client.get(f"/{part}").status_code for part in parts}
        documents = [client.get(f"/{part}").json() for part in parts if part.endswith(".json")]

    assert "http" not in page.text
    assert statuses == {200}
    assert [document["info"]["version"] for document in documents] == ["2", "1"]
    assert {"/api/v2/predict", "/api/predict", "/predict"} < set(documents[0]["paths"])
    assert {"/api/v1/predict", "/api/predict"} < set(documents[1]["paths"])


def test_log_has_the_request_id_and_no_text(server: Server, token: str) -> None:
    with server.client(token) as client:
        client.post(
            "/api/v1/predict",
            json={"text": "canary private words"},
            headers={"X-Request-ID": "find-me"},
        )
    line = json.loads(server.process.wait_for("find-me")[0])

    assert (line["route"], line["status"]) == ("/api/v1/predict", 200)
    assert "canary" not in server.process.log
    # All but what `kaiten serve` prints for its user, whose token is another.
    assert token not in server.process.log
