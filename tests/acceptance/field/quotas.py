"""Token quotas: tokens computed for callers that disconnect or set short timeouts."""

import asyncio
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

from benchmarks.client import Pool
from gateway.auth.minting import mint
from kaiten.settings.models import AuthSettings
from tests.acceptance.places import WatchedServer, serve
from tests.acceptance.report import Report
from tests.acceptance.target import Target
from tests.redis_server import redis_server
from tests.servers import quickstart_texts

BEFORE: Mapping[str, object] = {"tokens_computed_of_a_limit_of_3000": "67,000 to 88,000"}
_LIMIT, _BATCH, _REQUESTS, _ROUNDS, _TEXTS, _STAY_S = 3000, 512, 100, 3, 64, 1.0
_SECRET = "0123456789abcdef" * 4


async def run(report: Report, store: Path, folder: Path) -> None:
    """Attack in each way, with limits counted in the process and in Redis."""
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server())
        for name, more in (
            ("in process", {}),
            ("in Redis", {"KAITEN_STATE__REDIS_URL": redis.url}),
        ):
            settings = {
                "KAITEN_AUTH__SECRET": _SECRET,
                "KAITEN_RATE_LIMIT__TOKENS": f"{_LIMIT}/hour",
                **more,
            }
            with serve(store, folder / name.replace(" ", "-"), settings) as server:
                await _attack(report, name, server)


async def _attack(report: Report, name: str, server: WatchedServer) -> None:
    for method in ("all at once", "short limits", "leave"):
        token = mint(
            method.replace(" ", "-"), ["predict"], timedelta(hours=1), AuthSettings(), _SECRET
        )
        target = Target(server.target.port, token)
        texts = quickstart_texts()
        headers = {"X_Request_Timeout_Ms": "30"} if method == "short limits" else {}
        requests = [
            target.v2(texts[(at := number * _TEXTS % 1024) : at + _TEXTS], **headers)
            for number in range(_REQUESTS)
        ]
        async with server.pool() as pool:
            before = await _computed_tokens(pool, server)
            for _ in range(_ROUNDS):
                if method == "leave":
                    await asyncio.to_thread(_send_and_leave, target.port, requests)
                else:
                    await asyncio.gather(*(pool.ask(request) for request in requests))
            await asyncio.sleep(2)
            tokens = await _computed_tokens(pool, server) - before
        report.check(
            f"{name}, {method}: at most the limit of {_LIMIT} tokens and a batch of {_BATCH}",
            tokens,
            passed=tokens <= _LIMIT + _BATCH,
        )


async def _computed_tokens(pool: Pool, server: WatchedServer) -> float:
    """Return how many tokens the server has computed, including padding."""
    return (await pool.ask(server.target.get("/metrics"))).total("kaiten_batch_tokens_sum")


def _send_and_leave(port: int, requests: list[bytes]) -> None:
    """Send each request on a new connection, and disconnect soon after."""
    connections = []
    for request in requests:
        connections.append(socket.create_connection(("127.0.0.1", port), timeout=30))
        connections[-1].sendall(request)
    # Long enough for some texts to be queued.
    time.sleep(_STAY_S)
    for connection in connections:
        connection.close()
