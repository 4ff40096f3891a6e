"""Idle connections of load balancers and of strangers, and commands beside a proxy.

A load balancer keeps idle connections for up to 60 s. If the server closes them earlier, a request
can arrive on a connection that is being closed, and is lost. The module also checks that commands
reach their server on loopback while HTTP_PROXY names a proxy.
"""

import asyncio
import json
import subprocess
import time
from collections import Counter
from pathlib import Path

from tests.acceptance.places import WatchedServer, serve
from tests.acceptance.report import Report
from tests.servers import BIN, environment, free_port, running

BEFORE: dict[str, object] = {}
CONNECTIONS = 120
# The idle timeout of a load balancer, scaled with the suite.
BALANCER_S = 60.0
_DESCRIPTORS, _STRANGERS = 256, 1000
_HEADER_S = 10


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> str:
    """Return the status of the response, "lost" if the connection ends instead."""
    try:
        async with asyncio.timeout(30):
            writer.write(request)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1])
                for line in head.lower().splitlines()
                if line.startswith(b"content-length:")
            )
            await reader.readexactly(length)
    except (OSError, EOFError, TimeoutError):
        return "lost"
    return head[9:12].decode()


async def _check_reuse(server: WatchedServer, report: Report) -> None:
    """Send two requests on each connection, with pauses up to a load balancer's idle timeout."""
    idle_s = max(8.0, BALANCER_S * report.scale)
    request = server.target.v1("Where is my parcel?")

    async def pair(number: int) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.target.port)
        first = await _ask(reader, writer, request)
        await asyncio.sleep(4.99 + (idle_s - 4.99) * number / CONNECTIONS)
        second = await _ask(reader, writer, request)
        writer.close()
        return second if first == "200" else f"first {first}"

    ends = Counter(await asyncio.gather(*map(pair, range(CONNECTIONS))))
    report.check(
        f"a POST on a connection that was idle for 5 to {idle_s:g} s is answered",
        dict(ends),
        passed=ends == {"200": CONNECTIONS},
    )


async def _check_slow_head(server: WatchedServer, report: Report) -> None:
    """Send a head at one byte a second."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.target.port)
    start = time.monotonic()
    for byte in b"GET /livez HTTP/1.1\r\nHost: kaiten"[: 3 * _HEADER_S]:
        writer.write(bytes([byte]))
        try:
            async with asyncio.timeout(1):
                await reader.read()
            break
        except TimeoutError:
            pass
    seconds = time.monotonic() - start
    writer.close()
    report.check(
        f"a head that trickles in is given up after {_HEADER_S} s",
        seconds,
        passed=_HEADER_S - 1 <= seconds <= _HEADER_S + 3,
    )


async def _check_silent_connections(server: WatchedServer, report: Report) -> None:
    """Hold a thousand silent connections against a low limit of descriptors, and send requests."""
    port = server.target.port
    writers = [(await asyncio.open_connection("127.0.0.1", port))[1] for _ in range(_STRANGERS)]
    async with server.pool() as pool:
        request = server.target.v1("Where is my parcel?")
        ends = Counter([str((await pool.ask(request)).status) for _ in range(50)])
    descriptors = max(process.num_fds() for process in server.watch.workers())
    for writer in writers:
        writer.close()
    report.check(
        f"{_STRANGERS} silent connections, {_DESCRIPTORS} descriptors: callers are answered",
        [dict(ends), f"{descriptors} descriptors"],
        passed=ends == {"200": 50} and descriptors < _DESCRIPTORS,
    )


async def _check_proxy_variables(report: Report, store: Path, folder: Path) -> None:
    """Start and check a server while every proxy variable names a closed port."""
    proxy = f"http://127.0.0.1:{free_port()}"
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    proxies = {spelling: proxy for name in names for spelling in (name, name.lower())}
    env = environment(store, folder / "proxied", **proxies)
    env.pop("NO_PROXY", None)
    env.pop("no_proxy", None)
    port = free_port()
    with running([str(BIN / "kaiten"), "serve", "--port", str(port)], env) as process:
        try:
            await asyncio.wait_for(asyncio.to_thread(process.wait_for, r"^Ready\."), 60)
            ready = True
        except TimeoutError:
            ready = False
        report.check("kaiten serve finds its server beside a proxy", ready, passed=ready)
        command = [
            str(BIN / "kaiten"),
            "smoke",
            f"http://127.0.0.1:{port}",
            "--json",
            "--wait",
            "10",
        ]
        ended = await asyncio.to_thread(
            lambda: subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        )
        ok = ended.returncode == 0 and bool(json.loads(ended.stdout)["ok"])
        report.check("kaiten smoke finds it too", ended.returncode, passed=ok)
        process.stop()


async def run(report: Report, store: Path, folder: Path) -> None:
    """Run a server with the usual descriptors, one with few, and one beside a proxy."""
    with serve(store, folder / "home") as server:
        await asyncio.gather(_check_reuse(server, report), _check_slow_head(server, report))
    few = ("prlimit", f"--nofile={_DESCRIPTORS}")
    with serve(store, folder / "few", prefix=few) as server:
        await _check_silent_connections(server, report)
    await _check_proxy_variables(report, store, folder)
