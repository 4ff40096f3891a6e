"""A program whose forks share a client, while threads of the parent ask by it.

It reads its orders as JSON from standard input and prints what every request came to.
"""

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from kaiten_client import AsyncClient, Client, KaitenError

Row = list[str]


@dataclass(frozen=True)
class Orders:
    """How often to fork, how many children each time, and what all of them ask."""

    url: str
    kind: str
    texts: list[str]
    forks: int
    children: int = 4
    threads: int = 2
    requests: int = 2
    token: str | None = None


def outcome(client_name: str, text: str, ask: Callable[[], Any]) -> Row:
    """Return the client's name, the text, and its label or the error."""
    try:
        return [client_name, text, ask().predictions[0].label]
    except (KaitenError, RuntimeError) as error:
        return [client_name, text, f"{type(error).__name__}: {error}"]


def fork_child(work: Callable[[], list[Row]]) -> tuple[int, int]:
    """Run it in a child; return the child, and where its rows can be read."""
    source, sink = os.pipe()
    pid = os.fork()
    if pid:
        os.close(sink)
        return pid, source
    try:
        with os.fdopen(sink, "w") as stream:
            json.dump(work(), stream)
    finally:
        os._exit(0)


def collect_rows(pid: int, source: int) -> list[Row]:
    with os.fdopen(source) as stream:
        content = stream.read()
    os.waitpid(pid, 0)
    rows: list[Row] = json.loads(content) if content else [["child", "", "died"]]
    return rows


def sync_rows(orders: Orders) -> list[Row]:  # noqa: C901
    rows: list[Row] = []
    texts = cycle(orders.texts)
    with Client(orders.url, token=orders.token, timeout_s=20) as client:
        finished = threading.Event()

        def ask(client_name: str, text: str) -> Row:
            return outcome(client_name, text, lambda: client.predict([text]))

        def keep_asking() -> None:
            while not finished.is_set():
                rows.append(ask("parent", next(texts)))

        def child(child_texts: list[str]) -> Callable[[], list[Row]]:
            return lambda: [ask("child", text) for text in child_texts]

        rows.append(ask("parent", next(texts)))
        threads = [threading.Thread(target=keep_asking) for _ in range(orders.threads)]
        for thread in threads:
            thread.start()
        for _ in range(orders.forks):
            works = [
                child([next(texts) for _ in range(orders.requests)]) for _ in range(orders.children)
            ]
            for pid, source in [fork_child(work) for work in works]:
                rows += collect_rows(pid, source)
        finished.set()
        for thread in threads:
            thread.join()
        rows.append(ask("parent", next(texts)))
    return rows


async def ask_async(client: AsyncClient, client_name: str, text: str) -> Row:
    try:
        return [client_name, text, (await client.predict([text])).predictions[0].label]
    except (KaitenError, RuntimeError) as error:
        return [client_name, text, f"{type(error).__name__}: {error}"]


def async_rows(orders: Orders) -> list[Row]:
    rows: list[Row] = []
    texts = cycle(orders.texts)
    client = AsyncClient(orders.url, token=orders.token, timeout_s=20)
    loop = asyncio.new_event_loop()

    def ask(client_name: str) -> Row:
        return loop.run_until_complete(ask_async(client, client_name, next(texts)))

    def child(child_texts: list[str]) -> Callable[[], list[Row]]:
        async def all_of_them() -> list[Row]:
            return list(
                await asyncio.gather(*(ask_async(client, "child", text) for text in child_texts))
            )

        return lambda: asyncio.run(all_of_them())

    rows.append(ask("parent"))
    for _ in range(orders.forks):
        works = [
            child([next(texts) for _ in range(orders.requests)]) for _ in range(orders.children)
        ]
        children = [fork_child(work) for work in works]
        rows.append(ask("parent"))
        for pid, source in children:
            rows += collect_rows(pid, source)
    rows.append(ask("parent"))
    loop.run_until_complete(client.aclose())
    loop.close()
    return rows


if __name__ == "__main__":
    program_orders = Orders(**json.load(sys.stdin))
    json.dump(
        sync_rows(program_orders) if program_orders.kind == "sync" else async_rows(program_orders),
        sys.stdout,
    )
