"""A server on the device, and the load that its layout takes."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import httpx

from benchmarks import places
from benchmarks.catalogue import Server, kaiten
from benchmarks.client import Pool
from benchmarks.gpu.client import Order
from benchmarks.load import percentile
from benchmarks.servers import Running, ServerFailed

# Clients share the machine's cores with the server: as few as keep up with it.
_CLIENTS = 4
_START_S, _WARM_S = 2.0, 1.0
# A request's own deadline, and a little.
_LAST_ANSWER_S = 40
_STARTED = "Completed async startup hook"
_CONNECTIONS_A_WORKER = 8
_ROUNDS_OF_READINESS = 3


@dataclass(frozen=True, slots=True)
class Layout:
    """The processes that serve: the HTTP workers, and the holder of the model."""

    process: str
    workers: int

    @property
    def name(self) -> str:
        """The layout in words."""
        models = "a model in each" if self.process == "worker" else "one device process"
        return f"{self.workers} worker{'s' * (self.workers > 1)}, {models}"

    def server(self, tag: str, environment: Mapping[str, str]) -> Server:
        """Return how it is started."""
        server = kaiten(tag, self.workers)
        settings = {"KAITEN_RUNNERS__PROCESS": self.process, **environment}
        name = f"gpu-{self.process}-{self.workers}"
        return replace(server, name=name, env={**server.env, **settings})


@dataclass(frozen=True, slots=True)
class Shape:
    """A load: so many texts a request, over so many connections in all."""

    texts: int
    connections: int

    @property
    def name(self) -> str:
        return f"{self.texts} x {self.connections}"


def wait_for_workers(instance: Running, workers: int, seconds: float) -> None:
    """Wait until every worker has started and is ready; ServerFailed if that takes longer.

    One that is not yet would refuse its share of the connections, at once, for the whole load.
    """
    end = time.monotonic() + seconds
    rounds = 0
    while rounds < _ROUNDS_OF_READINESS:
        if time.monotonic() > end:
            raise ServerFailed(f"Not all of {workers} workers were ready within {seconds:.0f} s.")
        time.sleep(0.2)
        started = instance.log.read_text(errors="replace").count(_STARTED)
        ready = started >= workers and asyncio.run(_all_ready(instance.port, workers))
        rounds = rounds + 1 if ready else 0


async def _all_ready(port: int, workers: int) -> bool:
    """Return whether all workers are ready, by several connections for each."""
    request = f"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    pool = Pool(port)
    calls = (pool.ask(request) for _ in range(_CONNECTIONS_A_WORKER * workers))
    answers = await asyncio.gather(*calls)
    await pool.close()
    return all(answer.status == 200 for answer in answers)


def load(
    instance: Running, shape: Shape, texts: Sequence[str], tokens: float, seconds: float
) -> dict[str, Any]:
    """Ask for so long from several processes; return rates, latencies and the server's CPU.

    ``tokens`` is the mean of a text.
    """
    begin = time.monotonic() + _START_S + _WARM_S
    clients = min(_CLIENTS, shape.connections, max(1, (os.cpu_count() or 2) // 4))
    orders = _orders(instance, shape, texts, clients, (begin, begin + seconds))
    batches = _batches(instance)
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(_client(order)) for order in orders]
        time.sleep(max(0.0, begin - time.monotonic()))
        cpu, since = instance.cpu_s(), time.monotonic()
        time.sleep(max(0.0, begin + seconds - time.monotonic()))
        spent, passed = instance.cpu_s() - cpu, time.monotonic() - since
        outcomes = [_outcome(client) for client in started]
    requests = sum(client["requests"] for client in outcomes)
    latencies = [ms for client in outcomes for ms in client["latencies_ms"]]
    rate, cores = requests / seconds, spent / passed
    items, computed = (now - then for now, then in zip(_batches(instance), batches, strict=True))
    return {
        "requests_s": rate,
        "texts_s": rate * shape.texts,
        "tokens_s": rate * shape.texts * tokens,
        "p50_ms": percentile(latencies, 50),
        "p99_ms": percentile(latencies, 99),
        "errors": sum(client["errors"] for client in outcomes),
        "server_cores": cores,
        "client_cores": sum(client["cpu_s"] for client in outcomes) / seconds,
        "batch": items / computed if computed else 0.0,
    }


def _orders(
    instance: Running, shape: Shape, texts: Sequence[str], clients: int, times: tuple[float, float]
) -> list[Order]:
    call = instance.server.call(shape.texts)
    starts = range(0, len(texts) - shape.texts + 1, shape.texts)
    bodies = [json.dumps(call.body(texts[at : at + shape.texts])) for at in starts]
    begin, end = times
    return [
        Order(
            port=instance.port,
            path=call.path,
            authorization=instance.headers["Authorization"],
            bodies=bodies,
            # Apart, so that the same texts do not arrive together.
            first=number * len(bodies) // clients,
            connections=shape.connections // clients,
            begin=begin,
            end=end,
        )
        for number in range(clients)
    ]


@contextlib.contextmanager
def _client(order: Order) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "benchmarks.gpu.client"]
    with subprocess.Popen(
        command,
        cwd=places.ROOT,
        env=places.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(order.encode())
            process.stdin.close()
            process.stdin = None
            yield process
        finally:
            process.kill()


def _outcome(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    outcome: dict[str, Any] = json.loads(process.communicate(timeout=_LAST_ANSWER_S)[0])
    return outcome


def _batches(instance: Running) -> tuple[float, float]:
    """Return how many texts were computed so far, and in how many batches."""
    rows = httpx.get(
        f"{instance.url}/metrics", timeout=_LAST_ANSWER_S, trust_env=False
    ).text.splitlines()
    prefixes = ("kaiten_batch_items_sum{", "kaiten_batch_items_count{")
    totals = [
        sum(float(row.rpartition(" ")[2]) for row in rows if row.startswith(prefix))
        for prefix in prefixes
    ]
    return totals[0], totals[1]


def labels(instance: Running, texts: Sequence[str], size: int) -> list[str]:
    """Return the labels that a server gives."""
    server_labels: list[str] = []
    with httpx.Client(timeout=_LAST_ANSWER_S, trust_env=False) as client:
        rest = iter(texts)
        while part := list(islice(rest, size)):
            server_labels += instance.ask(client, part)
    return server_labels
