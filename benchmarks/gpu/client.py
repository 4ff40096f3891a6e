"""`python -m benchmarks.gpu.client`: one process of a load, which reads what to do from its input.

That is one JSON object on standard input, with the token, and it prints the outcome as another.
"""

import asyncio
import json
import resource
import sys
import time
from dataclasses import asdict, dataclass
from itertools import cycle, islice

import uvloop

from benchmarks.client import Answer, Pool, encode

# Workers that listen on one socket share new connections out evenly only if they come one by one.
_BETWEEN_CONNECTIONS_S = 0.004


@dataclass(frozen=True, slots=True)
class Order:
    """What one process asks, from ``begin`` to ``end`` by time.monotonic().

    It asks from now on; answers before ``begin`` warm the server up. ``first`` is the number of the
    body that it starts with.
    """

    port: int
    path: str
    authorization: str
    bodies: list[str]
    first: int
    connections: int
    begin: float
    end: float

    def encode(self) -> bytes:
        """Return it as it is read."""
        return json.dumps(asdict(self)).encode()


async def _ask(order: Order) -> dict[str, object]:
    headers = {"Authorization": order.authorization}
    encoded = [encode(order.port, order.path, body.encode(), headers) for body in order.bodies]
    requests = islice(cycle(encoded), order.first, None)
    pool, answers = Pool(order.port), list[Answer]()

    async def caller(number: int) -> None:
        await asyncio.sleep(number * _BETWEEN_CONNECTIONS_S)
        while time.monotonic() < order.end:
            answers.append(await pool.ask(next(requests)))

    await asyncio.gather(*(caller(number) for number in range(order.connections)))
    await pool.close()
    counted = [answer for answer in answers if order.begin <= answer.done <= order.end]
    good = [answer for answer in counted if answer.status == 200]
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "requests": len(good),
        "errors": len(counted) - len(good),
        "latencies_ms": [round(answer.seconds * 1000, 1) for answer in good],
        "cpu_s": used.ru_utime + used.ru_stime,
    }


def main() -> None:
    order = Order(**json.load(sys.stdin))
    print(json.dumps(uvloop.run(_ask(order))))


if __name__ == "__main__":
    main()
