import asyncio
import threading

from gateway.services import MetricsReader

PATIENCE_S = 10


class Held:
    """Metrics that take as long as the test wants, counted by how often they were read."""

    def __init__(self) -> None:
        self.reads = 0
        self.began = threading.Event()
        self.let_go = threading.Event()

    def exposition(self) -> tuple[bytes, str]:
        self.reads += 1
        self.began.set()
        self.let_go.wait(PATIENCE_S)
        return b"metric 1\n", "text/plain"


async def test_metrics_are_read_once_at_a_time_whoever_asks_and_leaves() -> None:
    metrics = Held()
    reader = MetricsReader(metrics.exposition)
    tasks = [asyncio.create_task(reader.exposition()) for _ in range(50)]
    assert await asyncio.to_thread(metrics.began.wait, PATIENCE_S)
    for leaver in tasks[1:]:
        leaver.cancel()
    await asyncio.wait(tasks[1:])
    late = asyncio.create_task(reader.exposition())
    metrics.let_go.set()

    assert await tasks[0] == await late == (b"metric 1\n", "text/plain")
    assert metrics.reads == 1
    await reader.exposition()
    assert metrics.reads == 2
