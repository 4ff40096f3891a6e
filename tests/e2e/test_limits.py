"""Limits over two workers, and over two servers, by a real Redis that hangs and is killed."""

import json
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from redis import Redis

from gateway.auth.minting import mint
from kaiten.settings.models import AuthSettings
from tests.redis_server import RedisServer, redis_server
from tests.servers import TLS, Server, environment, serving

SECRET = "0123456789abcdef" * 4
LIMIT = 20
PLAN_LIMIT = 30
SUBJECTS_OF_PLAN = ("heidi", "ivan")
WORKERS = 2


@dataclass(frozen=True)
class ServerPair:
    """A server with two workers, another with one, and the Redis that they share."""

    first: Server
    second: Server
    redis: RedisServer

    def ask(self, subject: str, count: int, *servers: Server) -> list[httpx.Response]:
        """Ask so often, by connections of their own, so that every worker gets some."""
        token = mint(subject, ["predict"], timedelta(hours=1), AuthSettings(), SECRET)
        headers = {"Authorization": f"Bearer {token}", "Connection": "close"}

        def post(number: int) -> httpx.Response:
            url = servers[number % len(servers)].url
            return client.post(f"{url}/api/v1/predict", json={"text": "Where is it?"})

        with (
            httpx.Client(headers=headers, timeout=60, verify=TLS) as client,
            ThreadPoolExecutor(8) as pool,
        ):
            return list(pool.map(post, range(count)))

    def statuses_while(self, event: Callable[[], None], subject: str, count: int) -> Counter[int]:
        """Return the statuses of the first server while something happens to Redis."""
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(self.statuses, subject, count, self.first)
            event()
            return asking.result()

    def statuses(self, subject: str, count: int, *servers: Server) -> Counter[int]:
        return Counter(answer.status_code for answer in self.ask(subject, count, *servers))

    def until_shared_again(self, times: int) -> None:
        """Ask until each worker of the first server has found Redis again, so often in all."""
        for _ in range(1000):
            if self.first.process.log.count("rate_limit_recovered") >= times:
                return
            self.ask("somebody", 8, self.first)
        raise AssertionError(self.first.process.log)


@pytest.fixture(scope="module")
def pair(bentoml_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerPair]:
    with redis_server() as redis:
        env = environment(
            bentoml_home,
            tmp_path_factory.mktemp("home"),
            KAITEN_AUTH__SECRET=SECRET,
            KAITEN_STATE__REDIS_URL=redis.url,
            KAITEN_RATE_LIMIT__REQUESTS=f"{LIMIT}/hour",
            KAITEN_RATE_LIMIT__PLANS=json.dumps({"batch": {"requests": f"{PLAN_LIMIT}/hour"}}),
            KAITEN_RATE_LIMIT__SUBJECTS=json.dumps(
                {f"kaiten|{subject}": "batch" for subject in SUBJECTS_OF_PLAN}
            ),
            KAITEN_GATEWAY__BODY_TIMEOUT_S="0.5",
        )
        two_worker_env = {
            **env,
            "BENTOML_CONFIG_OPTIONS": f"services.kaiten_service.workers={WORKERS}",
        }
        with serving(two_worker_env) as first, serving(env) as second:
            first.process.wait_for("Completed async startup hook", count=WORKERS)
            yield ServerPair(first, second, redis)


def test_a_limit_of_n_is_n_over_two_workers(pair: ServerPair) -> None:
    answers = pair.ask("alice", LIMIT * 4, pair.first)
    assert Counter(answer.status_code for answer in answers) == {200: LIMIT, 429: LIMIT * 3}
    refused = pair.ask("alice", 1, pair.first)[0]
    assert refused.json()["error"]["code"] == "rate_limited"
    assert refused.headers["RateLimit-Policy"].startswith(f'"requests";q={LIMIT};w=3600, ')
    assert refused.headers["RateLimit"].startswith('"requests";r=0;t=')
    assert 0 < int(refused.headers["Retry-After"]) <= 3600
    remaining = {
        answer.headers["RateLimit"].split(";")[1] for answer in answers if answer.status_code == 200
    }
    assert remaining == {f"r={number}" for number in range(LIMIT)}
    with Redis.from_url(pair.redis.url, decode_responses=True) as client:
        assert client.keys("kaiten:limits:requests/*")
        assert not client.keys("*alice*")
    assert "alice" not in pair.first.process.log


def test_and_over_two_servers(pair: ServerPair) -> None:
    assert pair.statuses("bob", LIMIT * 4, pair.first, pair.second) == {200: LIMIT, 429: LIMIT * 3}


def test_each_subject_of_a_plan_has_its_limit_over_two_servers(pair: ServerPair) -> None:
    for subject in SUBJECTS_OF_PLAN:
        statuses = pair.statuses(subject, PLAN_LIMIT * 2, pair.first, pair.second)
        assert statuses == {200: PLAN_LIMIT, 429: PLAN_LIMIT}
    refused = pair.ask("heidi", 1, pair.first)[0]
    assert refused.headers["RateLimit-Policy"].startswith(f'"requests";q={PLAN_LIMIT};w=3600, ')


def send_raw(server: Server, *headers: str, body: bytes) -> bytes:
    """Return all that a server answers to a request, as it stands, until it hangs up."""
    token = mint("grace", ["predict"], timedelta(hours=1), AuthSettings(), SECRET)
    usual = ("POST /api/v1/predict HTTP/1.1", "Host: kaiten", f"Authorization: Bearer {token}")
    lines = (*usual, "Content-Type: application/json", *headers, "", "")
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port or 80), timeout=60) as connection:
        connection.sendall("\r\n".join(lines).encode() + body)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_body_that_trickles_in_ends_with_its_connection(pair: ServerPair) -> None:
    answer = send_raw(pair.second, "Content-Length: 100", body=b'{"text": "')
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"body_timeout"' in answer


BODY = b'{"text": "hello"}'
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
LENGTH = f"Content-Length: {len(BODY)}"
REFUSED = {
    "headers too large": ((f"X-Long: {'x' * 20_000}", LENGTH), BODY, 431),
    "too many headers": ((*["X-More: 1"] * 200, LENGTH), BODY, 431),
    "two types": (("Content-Type: text/plain", LENGTH), BODY, 400),
    "two hosts": (("Host: other", LENGTH), BODY, 400),
    "two lengths": ((LENGTH, "Content-Length: 1"), BODY, 400),
    "length and chunks": ((LENGTH, "Transfer-Encoding: chunked"), CHUNKED, 400),
    "chunks and length": (("Transfer-Encoding: chunked", LENGTH), CHUNKED, 400),
    "compressed": (("Content-Encoding: gzip", LENGTH), BODY, 415),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_too_much_or_contradicts_itself_is_refused(pair: ServerPair, name: str) -> None:
    headers, body, status = REFUSED[name]
    answer = send_raw(pair.second, *headers, "Connection: close", body=body)
    assert answer.split()[1] == str(status).encode()


def test_a_redis_that_hangs_holds_up_nobody_and_fails_nothing(pair: ServerPair) -> None:
    before = pair.first.process.log.count("rate_limit_recovered")
    statuses = pair.statuses_while(pair.redis.hang, "carol", LIMIT * 10)
    pair.redis.go_on()
    # What both let in, and then each by itself.
    assert set(statuses) == {200, 429}
    assert LIMIT < statuses[200] <= LIMIT * (1 + WORKERS)
    pair.until_shared_again(before + WORKERS)
    assert pair.statuses("dave", LIMIT * 4, pair.first) == {200: LIMIT, 429: LIMIT * 3}


def test_a_redis_that_is_killed_fails_nothing_and_is_found_again(pair: ServerPair) -> None:
    before = pair.first.process.log.count("rate_limit_recovered")
    statuses = pair.statuses_while(pair.redis.kill, "erin", LIMIT * 10)
    assert pair.redis.url not in pair.first.process.log
    assert set(statuses) == {200, 429}
    assert LIMIT < statuses[200] <= LIMIT * (1 + WORKERS)
    with pair.first.client() as client:
        assert f"kaiten_rate_limit_degraded {WORKERS}.0" in client.get("/metrics").text
    with redis_server(pair.redis.port):
        pair.until_shared_again(before + WORKERS)
        assert pair.statuses("frank", LIMIT * 4, pair.first) == {200: LIMIT, 429: LIMIT * 3}
        with pair.first.client() as client:
            assert "kaiten_rate_limit_degraded 0.0" in client.get("/metrics").text
