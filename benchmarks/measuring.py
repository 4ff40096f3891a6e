"""One shape against one server that runs."""

import re
import time
from dataclasses import asdict, dataclass

import httpx
import psutil

from benchmarks import places
from benchmarks.load import Load, Target, closed_loop, open_loop
from benchmarks.servers import Running
from benchmarks.texts import SHAPES, Asked, Shape, write_bodies

_CAPACITY = SHAPES["1x32"]
OPEN_SHARE = 0.7
# A stretch of so many requests further for each round, so that rounds ask different texts.
STEP = 389
# Few requests fit into the time where texts are many or long, and a p99 needs many arrivals.
_LONGER = 2
# What wrk leaves behind at its end is computed on; the next load waits until that is over, or, as
# LitServe without a wait never rests, for so long.
_IDLE_CORES = 0.3
_IDLE_POLL_S = 0.25
_IDLE_LIMIT_S = 8


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of warm-up and of measuring."""

    warm_s: float = 2.0
    seconds: float = 4.0

    def of(self, shape: Shape) -> float:
        longer = shape.open_loop or shape.mixed or shape.per_request > 1
        return self.seconds * (_LONGER if longer else 1)


@dataclass
class Capacity:
    """The requests a second that a server took in the shape that the open loop refers to."""

    requests_s: float = 0.0


def measure(
    instance: Running,
    shape: Shape,
    requests: list[Asked],
    timing: Timing,
    round_number: int,
    capacity: Capacity,
) -> dict[str, float | int]:
    """Warm a shape up, measure it, and return its figures."""
    target = _target(instance, shape, requests)
    first = round_number * STEP % len(requests)
    rate = 0.0
    if shape.open_loop:
        if not capacity.requests_s:
            load = closed_loop(target, _CAPACITY.connections, timing.seconds, first)
            capacity.requests_s = load.requests_s
            settle(instance)
        rate = max(1.0, OPEN_SHARE * capacity.requests_s)
    _run(target, shape, timing.warm_s, first, rate)
    settle(instance)
    padding, cpu, other_cpu = _padding(instance), instance.cpu_s(), others_cpu_s()
    start = time.perf_counter()
    load = _run(target, shape, timing.of(shape), first, rate)
    seconds, spent = time.perf_counter() - start, instance.cpu_s() - cpu
    other_cpu = others_cpu_s() - other_cpu - spent
    settle(instance)
    if shape == _CAPACITY:
        capacity.requests_s = load.requests_s
    return {
        **_figures(load, shape, requests, first),
        "cpu_ms_per_request": spent * 1000 / max(1, load.requests),
        "cpu_cores": spent / seconds,
        "other_cores": max(0.0, other_cpu / seconds),
        **_waste(padding, _padding(instance)),
        "memory_mb": instance.memory_mb(),
    }


def others_cpu_s() -> float:
    """Return the CPU seconds that the machine has given to all but us and the load generator."""
    machine, process_times = psutil.cpu_times(), psutil.Process().cpu_times()
    busy = machine.user + machine.nice + machine.system
    return float(busy - sum(process_times[:4]))


def settle(instance: Running) -> None:
    """Wait until a server has computed its backlog, up to a limit."""
    end = time.perf_counter() + _IDLE_LIMIT_S
    while time.perf_counter() < end:
        before = instance.cpu_s()
        time.sleep(_IDLE_POLL_S)
        if instance.cpu_s() - before < _IDLE_CORES * _IDLE_POLL_S:
            return


def _figures(load: Load, shape: Shape, requests: list[Asked], first: int) -> dict[str, float | int]:
    """Return a load's own figures, with its texts and its tokens a second."""
    met = [requests[(first + step) % len(requests)].tokens for step in range(max(1, load.requests))]
    texts_s = load.requests_s * shape.per_request
    figures: dict[str, float | int] = asdict(load)
    return {**figures, "texts_s": texts_s, "tokens_s": load.requests_s * sum(met) / len(met)}


def _target(instance: Running, shape: Shape, requests: list[Asked]) -> Target:
    call = instance.server.call(shape.per_request)
    kind = "mixed" if shape.mixed else str(shape.per_request)
    bodies = places.BODIES / f"{instance.server.name}-{kind}.jsonl"
    write_bodies(bodies, requests, call.body)
    return Target(instance.url + call.path, bodies, instance.headers)


def _run(target: Target, shape: Shape, seconds: float, first: int, rate: float) -> Load:
    if shape.open_loop:
        return open_loop(target, rate, seconds, first)
    return closed_loop(target, shape.connections, seconds, first)


def _padding(instance: Running) -> tuple[float, float] | None:
    """Return the sum and the count of Kaiten's padding histogram; None of other servers."""
    if not instance.server.name.startswith("kaiten"):
        return None
    text = httpx.get(
        instance.url + "/metrics", headers=instance.headers, timeout=30, trust_env=False
    ).text
    return parse_padding(text)


def parse_padding(metrics: str) -> tuple[float, float] | None:
    """Read the sum and the count of ``kaiten_batch_padding_ratio``, over all its labels."""
    samples = re.findall(
        r"^kaiten_batch_padding_ratio_(sum|count)\{[^}]*\} (\S+)", metrics, re.MULTILINE
    )
    if not samples:
        return None
    sums, counts = (
        [float(value) for part, value in samples if part == suffix] for suffix in ("sum", "count")
    )
    return sum(sums), sum(counts)


def _waste(
    before: tuple[float, float] | None, after: tuple[float, float] | None
) -> dict[str, float]:
    """Return the mean share of a batch that was padding in between."""
    if after is None:
        return {}
    earlier = before or (0.0, 0.0)
    batches = after[1] - earlier[1]
    return {"padding": (after[0] - earlier[0]) / batches} if batches else {}
