"""A slow Redis: how often a worker switches between shared limits and its own."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from itertools import cycle
from pathlib import Path

from tests.acceptance.load import closed_loop
from tests.acceptance.places import serve
from tests.acceptance.report import Report
from tests.redis_server import redis_server
from tests.servers import quickstart_texts

BEFORE: Mapping[str, object] = {"switches_at_600_ms": 43}
_DELAYS_S, _SECONDS, _LANES = (0.2, 0.45, 0.6, 1.0), 20.0, 8
_MOST_SWITCHES, _MOST_LINES = 6, 12


class SlowProxy:
    """A proxy between a client and Redis that delays each reply by ``delay_s``."""

    def __init__(self, port: int) -> None:
        self._redis = port
        self.delay_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Listen, and return the port."""
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, questions = await asyncio.open_connection("127.0.0.1", self._redis)
        back = asyncio.create_task(self._pump(answers, writer, slow=True))
        self._tasks.add(back)
        await self._pump(reader, questions, slow=False)
        back.cancel()
        for end in (questions, writer):
            end.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slow: bool
    ) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if slow:
                    await asyncio.sleep(self.delay_s)
                writer.write(data)
                await writer.drain()


async def run(report: Report, store: Path, folder: Path) -> None:
    """Load one server while its Redis gets slower, and count the switches."""
    seconds = max(5.0, _SECONDS * report.scale)
    with redis_server() as redis:
        proxy = SlowProxy(redis.port)
        port = await proxy.start()
        settings = {"KAITEN_STATE__REDIS_URL": f"redis://127.0.0.1:{port}/0"}
        # Started on a thread, because the proxy to its Redis runs in this event loop.
        place = serve(store, folder, settings)
        server = await asyncio.to_thread(place.__enter__)
        try:
            requests = cycle([server.target.v1(text) for text in quickstart_texts()[:200]])
            for delay_s in _DELAYS_S:
                proxy.delay_s = delay_s
                first = len(server.server.process.lines)
                async with server.pool() as pool:
                    load = await closed_loop(pool, requests, _LANES, seconds)
                lines = server.server.process.lines[first:]
                back = sum("rate_limit_recovered" in line for line in lines)
                lost = sum("rate_limit_degraded" in line for line in lines)
                name = f"{1000 * delay_s:.0f} ms"
                report.check(
                    f"{name}: at most {_MOST_SWITCHES} switches back to Redis",
                    back,
                    passed=back <= _MOST_SWITCHES,
                )
                report.check(
                    f"{name}: at most {_MOST_LINES} lines in the log",
                    back + lost,
                    passed=back + lost <= _MOST_LINES,
                )
                report.check(f"{name}: no request fails", load.statuses, passed=not load.failed)
        finally:
            await asyncio.to_thread(place.__exit__, None, None, None)
            proxy.close()
