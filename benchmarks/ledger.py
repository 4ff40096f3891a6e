"""`python -m benchmarks.ledger`: CPU microseconds that a request of one text costs, part by part.

Each part runs by itself, in this process, on the classes that are served; the rest is a stub. What
a server's own CPU a request has beyond their sum is left over: sockets, the HTTP server, the event
loop, threads that wait for each other. Prints one JSON object.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import places
from kaiten.settings.loader import Settings
from kaiten.settings.models import (
    AuthSettings,
    BatchingSettings,
    DriftSettings,
    LoggingSettings,
    ProfileSettings,
    RateLimitSettings,
    RunnerSettings,
    StateSettings,
)
from monitors.logging.setup import configure_logging

ROUNDS, REQUESTS = 7, 2000
_TEXTS = 256
_BATCH = 8
_TAG = "benchmark-intent:1.0.0"
_PATH = "/api/v1/predict"
_SECRET = os.urandom(32).hex()
Ledger = dict[str, float]
Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Stub:
    """A runner that has its answer ready."""

    answer: Any
    labels: Sequence[str]
    model_tag: str = _TAG
    ready: bool = True
    queue_delay_s: int = 1

    def retry_after_s(
        self, subject: str, inputs: int, deadline: float, ahead: int = 0
    ) -> int | None:
        return None

    async def predict(self, inputs: Sequence[str], deadline: float) -> list[Any]:
        return [self.answer for _ in inputs]

    # It is its own registry, which holds nothing else.
    def __iter__(self) -> Iterator["Stub"]:
        yield self

    def get(self, model: str | None) -> "Stub":
        return self


@dataclass(frozen=True)
class _Instant:
    """Both halves of a task that computes at once, which leaves the queue and threads."""

    items: Mapping[str, Any]
    lanes: int
    batch_tokens: int
    batch_items: int = 64
    packed: bool = False
    express: bool = False
    inline_chars: float = 512

    def prepare(self, inputs: Sequence[str]) -> list[Any]:
        return [self.items[text] for text in inputs]

    def infer(self, batch: Sequence[Any], *, alone: bool = False) -> Sequence[Any]:
        return batch

    def finish(self, batch: Sequence[Any], raw: Sequence[Any]) -> list[Any]:
        return list(raw)

    def check(self) -> None:
        pass

    def warm_up(self, tokens: int, items: int) -> None:
        pass


def _unwatched(_: object) -> None:
    raise AssertionError("its windows are closed in its own thread, which is never started")


class _Unwatched:
    """Notes nothing, wherever something may be noted."""

    def request_started(self, endpoint: str) -> None: ...
    def request_answered(self, endpoint: str, model: str, status: int, seconds: float) -> None: ...
    def emit(self, events: Sequence[Any]) -> None: ...
    def queue_changed(self, items: int) -> None: ...
    def batch_computed(self, report: Any) -> None: ...
    def batch_failed(self) -> None: ...
    def out_of_memory(self) -> None: ...

    def device_hung(self) -> None: ...
    def items_skipped(self, *, gone: int, expired: int) -> None: ...
    def request_limited(self, limit: str) -> None: ...
    def body_bytes_changed(self, size_bytes: int) -> None: ...
    def body_refused(self) -> None: ...
    def limits_degraded(self, *, degraded: bool) -> None: ...


def parts(folder: Path, texts: Sequence[str], metrics: str) -> Ledger:
    """Return microseconds of CPU a request, by part."""
    from runners.tasks.text_classification.serving import load

    task = load(folder, 512, RunnerSettings(device="cpu"))
    processor, model = task.processor, task.model
    items = dict(zip(texts, processor.prepare(texts), strict=True))
    batches = _batches(sorted(items.values(), key=lambda item: item.cost))
    raw = [model.infer(batch) for batch in batches]
    answers = processor.finish(batches[0], raw[0])
    labels = [str(number) for number in range(raw[0].logits.shape[1])]
    stub = Stub(answers[0], labels)
    watched, unwatched = through_edge(stub, texts, metrics), through_edge(stub, texts, None)
    edge = asyncio.run(cpu_us(unwatched))
    token = asyncio.run(cpu_us(_token()))
    queue = asyncio.run(_queued(_Instant(items, model.lanes, model.batch_tokens), texts))
    return {
        "edge": edge - token,
        "token": token,
        "tokenise": _cpu_us_per_item(
            len(texts), lambda: [processor.prepare([text]) for text in texts]
        ),
        "queue": queue,
        "infer": _cpu_us_per_item(len(texts), lambda: [model.infer(batch) for batch in batches]),
        "finish": _cpu_us_per_item(len(texts), lambda: [*map(processor.finish, batches, raw)]),
        "observe": asyncio.run(cpu_us(watched)) - edge + _batch_notes(metrics, batches),
    }


def _batches(items: Sequence[Any]) -> list[list[Any]]:
    return [list(items[at : at + _BATCH]) for at in range(0, len(items), _BATCH)]


def _cpu_us_per_item(count: int, work: Callable[[], object]) -> float:
    """Return the CPU microseconds of one of ``count``, the median of some rounds."""
    costs_us = []
    for _ in range(ROUNDS):
        started = time.process_time()
        work()
        costs_us.append((time.process_time() - started) / count * 1e6)
    return median(costs_us)


async def cpu_us(ask: Callable[[int], Awaitable[None]]) -> float:
    """Return the CPU microseconds of a request, the median of some rounds after one to warm up."""
    costs_us = []
    for number in range(ROUNDS + 1):
        started = time.process_time()
        for index in range(REQUESTS):
            await ask(index)
        if number:
            costs_us.append((time.process_time() - started) / REQUESTS * 1e6)
    return median(costs_us)


def through_edge(
    stub: Stub,
    texts: Sequence[str],
    metrics: str | None,
    callers: Any = None,
    headers: Callable[[int], Headers] | None = None,
    state: StateSettings | None = None,
) -> Callable[[int], Awaitable[None]]:
    """Return a request through all middleware to a handler; with ``metrics`` it is watched too.

    Without ``callers`` and the ``headers`` of each request, it comes with one token, known by then.
    """
    # Not at the top: prometheus_client looks for its directory when it is imported.

    from gateway.app import EdgeParts, route_table, wrap
    from gateway.prediction import PredictionHandler
    from gateway.rate_limit.limiter import limiter_for
    from gateway.services import MetricsReader, Services
    from monitors.drift.profiler import Profiler
    from monitors.events import EventBus
    from monitors.metrics.definitions import Metrics

    nothing: Any = _Unwatched()
    worker_metrics = Metrics(metrics) if metrics else None
    # Never started: the work of its own thread is not part of a request.
    profiler = Profiler(
        Path(),
        [],
        (ProfileSettings(max_pending_events=10**7), DriftSettings()),
        _unwatched,
        lambda _: None,
    )
    events = EventBus()
    events.subscribe(profiler.handle, lambda _: None)
    settings = Settings.model_construct(logging=LoggingSettings(max_request_lines_per_s=0))
    table = route_table(settings)
    services = Services(
        settings,
        table,
        PredictionHandler(stub, settings.gateway, lambda: True),
        MetricsReader(Metrics().exposition),
        nothing,
        nothing,
        None,
        lambda: False,
    )
    parts = EdgeParts(
        services,
        callers or _callers(),
        worker_metrics or nothing,
        events if metrics else nothing,
        limiter_for(RateLimitSettings(), state or StateSettings(), 30, worker_metrics or nothing),
    )
    app, bodies = wrap(_not_found, parts), [json.dumps({"text": text}).encode() for text in texts]
    token_headers = request_headers(own_token())
    sent = headers or (lambda _: token_headers)

    async def ask(index: int) -> None:
        body, statuses = bodies[index % len(bodies)], []
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            # Then the caller stays, silent.
            return messages.pop() if messages else await asyncio.Event().wait()  # type: ignore[return-value]

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        await app(_scope(sent(index)), receive, send)
        assert statuses == [200], statuses

    return ask


async def _not_found(*_: object) -> None:
    raise AssertionError("every route has a handler")


def _callers() -> Any:  # imported when it is needed
    """Return the authenticator of tokens that a secret verifies."""
    from gateway.auth.factory import build
    from gateway.auth.signing_secret import SigningSecret
    from gateway.middleware.access import Callers

    settings = Settings.model_construct(home=Path("/nowhere"))
    tokens = build(settings, SigningSecret(_SECRET, development=False))
    tokens.watch.poll()
    return Callers(tokens.authenticator, loopback_only=False)


def _token() -> Callable[[int], Awaitable[None]]:
    """Return the check of a token that was seen before."""
    from gateway.app import route_table
    from gateway.exchange import Exchange, add_exchange
    from gateway.middleware.access import AccessMiddleware

    async def inner(*_: object) -> None: ...

    app = AccessMiddleware(inner, _callers())
    match = route_table(Settings.model_construct()).match("POST", _PATH)
    headers = request_headers(own_token())

    async def ask(_: int) -> None:
        scope = _scope(headers)
        add_exchange(scope, Exchange("0", match=match))
        await app(scope, inner, inner)  # type: ignore[arg-type]

    return ask


def own_token() -> tuple[bytes, bytes]:
    """Return the header of a token of this service's own."""
    from gateway.auth.minting import mint

    token = mint("benchmark", ["predict"], timedelta(hours=1), AuthSettings(), _SECRET)
    return b"authorization", b"Bearer " + token.encode()


def request_headers(credential: tuple[bytes, bytes]) -> Headers:
    """Return the headers of a request."""
    return [
        (b"host", b"127.0.0.1:3000"),
        credential,
        (b"content-type", b"application/json"),
    ]


def _scope(headers: Headers) -> dict[str, Any]:
    called = {"method": "POST", "path": _PATH, "raw_path": _PATH.encode(), "query_string": b""}
    ends = {"client": ("127.0.0.1", 4711), "server": ("127.0.0.1", 3000), "scheme": "http"}
    return {"type": "http", "http_version": "1.1", "headers": headers, **called, **ends}


async def _queued(task: _Instant, texts: Sequence[str]) -> float:
    """Return the CPU microseconds of a text's way through the queue and a lane's thread.

    As many callers as the shape 1x32 has ask at once, over and over.
    """
    from runners.runner import Runner
    from runners.tasks.base import Task
    from server.worker import SWITCH_INTERVAL_S

    # As in a worker: with Python's default, a lane waits for the event loop.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    nothing = _Unwatched()
    runner = Runner(_TAG, ["a"], Task(task, task), BatchingSettings(), nothing, lambda: None)
    await runner.start()
    costs_us = []
    for _ in range(ROUNDS):
        started = time.process_time()
        for at in range(0, len(texts), 32):
            await asyncio.gather(*(runner.predict([text]) for text in texts[at : at + 32]))
        costs_us.append((time.process_time() - started) / len(texts) * 1e6)
    await runner.close()
    return median(costs_us)


def _batch_notes(metrics: str, batches: Sequence[Sequence[Any]]) -> float:
    """Return what noting batches costs, for each text."""
    from kaiten.serving import BatchStats
    from monitors.metrics.definitions import Metrics

    observer = Metrics(metrics).observer(_TAG)

    def note() -> None:
        for batch in batches:
            costs = [item.cost for item in batch]
            report = BatchStats(
                len(batch), sum(costs), max(costs) * len(batch), [0.01] * len(batch), 0.02
            )
            observer.batch_computed(report)
            for _ in batch:
                observer.queue_changed(1)

    return _cpu_us_per_item(sum(map(len, batches)), note)


def run(folder: Path, texts: Path) -> Ledger:
    """Measure in a process of its own: metrics are set up as they are imported."""
    command = [str(places.PYTHON), "-m", "benchmarks.ledger", str(folder), str(texts)]
    done = subprocess.run(
        command, cwd=places.ROOT, env=places.environment(), stdout=subprocess.PIPE, check=True
    )
    ledger: Ledger = json.loads(done.stdout)
    return ledger


def main() -> None:
    """Measure the model in a folder, with the texts of a JSON file."""
    folder, file = map(Path, sys.argv[1:3])
    texts = json.loads(file.read_text(encoding="utf-8"))["short"][:_TEXTS]
    with tempfile.TemporaryDirectory() as metrics:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics
        # Standard output is the answer's alone.
        configure_logging(LoggingSettings(level="error"))
        print(json.dumps(parts(folder, texts, metrics)))


if __name__ == "__main__":
    main()
