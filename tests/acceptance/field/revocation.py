"""Revocation through faults: Redis loses its data, a home is deleted, workers end."""

import asyncio
import json
import os
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
from redis import Redis
from redis.exceptions import RedisError
from structlog.testing import capture_logs

from gateway.auth.credential_stores import FileCredentials
from gateway.auth.redis_credential_store import RedisCredentials
from kaiten.errors import StateUnavailable
from tests.acceptance.report import Report
from tests.redis_server import RedisServer, redis_server
from tests.revocations import ServerProcesses
from tests.servers import BIN, Server, environment, serving, until_all_ready

BEFORE = {
    "emptied Redis, the operator writes first: revoked token accepted": "8 of 8",
    "emptied Redis, the operator writes first: API key refused": "8 of 8",
    "home deleted, a worker replaced: revoked token accepted by it": "8 of 8",
}
_SEQUENCES = 200
_STEPS = 20
_KEY = "kaiten:credentials"
_ENOUGH = 24
_LIMIT_S = 60
_SECRET = "0123456789abcdef" * 4


async def run(report: Report, store: Path, folder: Path) -> None:
    """Run random sequences on simulated processes, then a scenario on a real server."""
    await asyncio.to_thread(_random_sequences, report, folder)
    await asyncio.to_thread(_real_server, report, store, folder)


class _Sequence:
    """The simulated processes of one server with a real Redis or a file, and possible events."""

    def __init__(self, folder: Path, redis: RedisServer | None) -> None:
        folder.mkdir()
        self._redis = redis
        if redis is not None:
            with Redis.from_url(redis.url) as client:
                client.flushdb()
        self.server = ServerProcesses(
            folder,
            lambda home: (
                FileCredentials(home / "credentials.json")
                if redis is None
                else RedisCredentials(redis.url)
            ),
            with_host_copy=redis is not None,
        )
        self._older: list[bytes | str | None] = [None]

    def acts(self, chance: random.Random) -> dict[str, Callable[[], None]]:
        """Return the possible next events by name."""
        server = self.server
        acts: dict[str, Callable[[], None]] = {
            "key created": server.create_key,
            "key deleted": lambda: server.delete_key(chance.randrange(8)),
            "token revoked": server.revoke_token,
            "all polled": lambda: self._round(chance.randrange(8)),
            "home deleted": server.delete_home,
            "server's copy deleted": server.delete_server_copy,
            "worker replaced": lambda: server.replace_worker(chance.randrange(8)),
            "all workers replaced": server.replace_all_workers,
        }
        if self._redis is not None:
            acts |= {
                "Redis emptied": lambda: self._with_redis(lambda client: client.flushdb()),
                "Redis put back": lambda: self._put_back(chance.choice(self._older)),
            }
        return acts

    def _round(self, order: int) -> None:
        self.server.round(order)
        self._with_redis(lambda client: self._older.append(client.get(_KEY)))

    def _put_back(self, older: bytes | str | None) -> None:
        self._with_redis(lambda client: older and client.set(_KEY, older))

    def _with_redis(self, act: Callable[["Redis"], Any]) -> None:
        if self._redis is not None:
            with suppress(RedisError), Redis.from_url(self._redis.url) as client:
                act(client)


def _random_sequences(report: Report, folder: Path) -> None:
    count = max(4, round(_SEQUENCES * report.scale))
    happened: Counter[str] = Counter()
    faults: list[str] = []
    with redis_server() as redis:
        for seed in range(count):
            chance = random.Random(seed)
            # Every fourth sequence has no Redis and keeps its list in the home.
            sequence = _Sequence(folder / str(seed), redis if seed % 4 else None)
            with capture_logs():
                faults += _play(sequence, chance, happened, seed)
    faults += _killed(folder, max(2, count // 20), happened)
    report.tell("random sequences", sequences=count, **dict(sorted(happened.items())))
    report.check(
        "random sequences: revoked credentials accepted, valid keys refused after a poll",
        faults[:5] or f"0 in {count}",
        passed=not faults,
    )


def _play(
    sequence: _Sequence, chance: random.Random, happened: Counter[str], seed: int
) -> list[str]:
    acts = sequence.acts(chance)
    try:
        for _ in range(_STEPS):
            name = chance.choice([*acts, "all polled"])
            happened[name] += 1
            # The operator gets an error and knows that nothing was recorded.
            with suppress(StateUnavailable):
                acts[name]()
            sequence.server.check_revoked()
        sequence.server.round()
    except AssertionError as error:
        return [f"sequence {seed}: {error}"]
    return []


def _killed(folder: Path, count: int, happened: Counter[str]) -> list[str]:
    """Kill a Redis without persistence, replace workers during the outage, and restart it."""
    faults = []
    for number in range(count):
        with redis_server() as redis, capture_logs():
            sequence = _Sequence(folder / f"killed-{number}", redis)
            server = sequence.server
            try:
                server.create_key()
                server.revoke_token()
                server.round()
                redis.kill()
                happened["Redis killed"] += 1
                if number % 2:
                    server.delete_home()
                server.replace_all_workers()
                server.round()
                with redis_server(redis.port):
                    server.revoke_token()
                    server.round()
                    server.replace_worker(number)
                    server.round()
            except AssertionError as error:
                faults.append(f"killed {number}: {error}")
    return faults


class _Callers:
    """The callers and the operator of a server with two workers."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def command(self, *arguments: str) -> str:
        command = [str(BIN / "kaiten"), *arguments]
        result = subprocess.run(
            command, env=self.server.env, check=True, capture_output=True, text=True
        )
        return result.stdout.strip()

    def statuses(self, headers: dict[str, str]) -> Counter[int]:
        body = {"text": "Where is my parcel?"}
        with httpx.Client(headers={**headers, "Connection": "close"}, timeout=60) as client:
            url = f"{self.server.url}/api/v1/predict"
            return Counter(client.post(url, json=body).status_code for _ in range(_ENOUGH))

    def until(self, status: int, headers: dict[str, str]) -> float:
        """Return the seconds until all responses have this status."""
        begun = time.monotonic()
        while set(self.statuses(headers)) != {status}:
            if time.monotonic() - begun > _LIMIT_S:
                return float("inf")
        return time.monotonic() - begun

    def replace_a_worker(self) -> None:
        """Kill one worker, and wait until its replacement is ready."""
        before = _workers(self.server)
        os.kill(before[0], 9)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            now = _workers(self.server)
            if len(now) == len(before) and before[0] not in now:
                break
            time.sleep(0.2)
        until_all_ready(self.server.url)


def _workers(server: Server) -> list[int]:
    children = psutil.Process(server.process.popen.pid).children(recursive=True)
    return sorted(
        child.pid for child in children if "_bentoml_impl.worker.service" in " ".join(_line(child))
    )


def _line(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def _real_server(report: Report, store: Path, folder: Path) -> None:
    with redis_server() as redis:
        home = folder / "server-home"
        env = environment(
            store,
            home,
            KAITEN_AUTH__SECRET=_SECRET,
            KAITEN_STATE__REDIS_URL=redis.url,
            BENTOML_CONFIG_OPTIONS="services.kaiten_service.workers=2",
            OMP_NUM_THREADS="1",
            OMP_WAIT_POLICY="PASSIVE",
        )
        with serving(env) as server:
            server.process.wait_for("Completed async startup hook", count=2)
            until_all_ready(server.url)
            _attack(report, _Callers(server), redis, home)


def _attack(report: Report, callers: _Callers, redis: RedisServer, home: Path) -> None:
    bearer = {"Authorization": f"Bearer {callers.server.token()}"}
    key = {
        "X-API-Key": callers.command("api-key", "create", "--subject", "job", "--scope", "predict")
    }
    report.tell("server", key_known_after_s=callers.until(200, key))
    callers.command("revoke", "--subject", "tester")
    report.tell("server", revocation_known_after_s=callers.until(401, bearer))
    revoked: Counter[int] = Counter()
    keys: Counter[int] = Counter()

    def ask() -> None:
        revoked.update(callers.statuses(bearer))
        keys.update(callers.statuses(key))

    with Redis.from_url(redis.url) as client:
        client.flushdb()
        callers.command("revoke", "--subject", "somebody-else")
        ask()
        time.sleep(2)
        restored = json.loads(client.get(_KEY) or b"{}")
        ask()
        shutil.rmtree(home)
        client.flushdb()
        callers.replace_a_worker()
        ask()
    report.check(
        "server: revoked token accepted after Redis and home were lost and a worker replaced",
        dict(revoked),
        passed=set(revoked) == {401},
    )
    report.check("server: valid API key refused meanwhile", dict(keys), passed=set(keys) == {200})
    report.check(
        "server: Redis has the list again",
        sorted(restored.get("revoked_subjects", {})),
        passed="kaiten|tester" in restored.get("revoked_subjects", {}),
    )
