"""Connections that are kept: behind balancers that keep them for a minute, and by strangers.

A balancer that keeps idle connections for 60 s sends a request on one just as the server closes it,
where the server keeps it for less. Beside it, the commands ask their server on this machine where
HTTP_PROXY names a proxy.
"""

import asyncio
import json
import resource
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.acceptance.places import Served, served
from tests.acceptance.report import Report
from tests.e2e.house import BIN, environment, free_port, running

BEFORE: dict[str, object] = {}
CONNECTIONS = 120
# What a balancer may hold a connection for, shortened where the suite is.
BALANCER_S = 60.0
_SOFT_LIMIT, _STRANGERS = 256, 1000
_HEADER_S = 10


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> str:
    """Return the status of an answer; "lost" where the connection ends instead."""
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


async def _reused(one: Served, report: Report) -> None:
    """Ask twice on each connection, with pauses up to what a balancer keeps it for.

    The second request leaves 3 ms late, as over a network: the server may have closed meanwhile.
    """
    idle_s = max(8.0, BALANCER_S * report.scale)
    request = one.target.v1("Where is my parcel?")

    async def pair(number: int) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", one.target.port)
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


async def _trickled(one: Served, report: Report) -> None:
    """Send half a head, and the rest of it a byte a second."""
    reader, writer = await asyncio.open_connection("127.0.0.1", one.target.port)
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


async def _strangers(one: Served, report: Report) -> None:
    """Hold a thousand silent connections where few descriptors are allowed, and ask beside them."""
    port = one.target.port
    writers = [(await asyncio.open_connection("127.0.0.1", port))[1] for _ in range(_STRANGERS)]
    async with one.pool() as pool:
        request = one.target.v1("Where is my parcel?")
        ends = Counter([str((await pool.ask(request)).status) for _ in range(50)])
    descriptors = max(process.num_fds() for process in one.watch.workers())
    for writer in writers:
        writer.close()
    report.check(
        f"{_STRANGERS} silent connections, {_SOFT_LIMIT} descriptors: callers are answered",
        [dict(ends), f"{descriptors} descriptors"],
        passed=ends == {"200": 50} and descriptors < _SOFT_LIMIT,
    )


@contextmanager
def _few_descriptors() -> Iterator[None]:
    """Let what is started meanwhile have few file descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_SOFT_LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def _proxied(report: Report, store: Path, folder: Path) -> None:
    """Start and try a server where every proxy variable names a port that nothing listens on."""
    proxy = f"http://127.0.0.1:{free_port()}"
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    proxies = {each: proxy for name in names for each in (name, name.lower())}
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
    """One server after the other: with descriptors as they are, with few, and beside a proxy."""
    with served(store, folder / "home") as one:
        await asyncio.gather(_reused(one, report), _trickled(one, report))
    with ExitStack() as stack:
        with _few_descriptors():
            one = stack.enter_context(served(store, folder / "few"))
        await _strangers(one, report)
    await _proxied(report, store, folder)
