"""`python -m benchmarks.gpu`: the limits of a CUDA device, and what servers on it reach."""

import math
import shutil
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks import model as benchmark_model
from benchmarks import places
from benchmarks.catalogue import Configuration
from benchmarks.gpu import model, offline, report, served
from benchmarks.gpu.served import Layout, Shape
from benchmarks.results import Results, machine
from benchmarks.servers import running
from kaiten.settings.models import LoggingSettings, RunnerSettings
from monitors.logging.setup import configure_logging
from runners.engines import precision
from runners.engines.base import Engine, TokenBatch
from runners.tasks.text_classification.serving import load_processor

_MINUTES = 7.5
_TAG = "gpu-intent:1.0.0"
_TEXTS = 3072
_SIZES = (32, 256, 1024)
_SECONDS = 2.0
_LOAD_S = 5.0
# What a layout takes after it is ready: two loads, the labels and its end.
_LAYOUT_S = 35.0
_LAST_START_S = 75.0
# The most telling first: the last may not fit into the time.
_LAYOUTS = (
    *(Layout("device", 8), Layout("worker", 8), Layout("worker", 1), Layout("device", 4)),
    *(Layout("worker", 4), Layout("device", 12), Layout("device", 1)),
)
_SHAPES = (Shape(1, 256), Shape(256, 32))
_SMOKE_LAYOUTS = (Layout("worker", 1), Layout("device", 2))
_SMOKE_SHAPES = (Shape(1, 8), Shape(32, 2))
# A whole request of the largest shape, from every connection.
_QUEUE_ITEMS = 16_384
_DATA = places.ROOT.parent / "shared" / "data" / "banking77"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True, highlight=False)


@dataclass
class Bench:
    """One run: what it measures on, what it asks, and the time that it has left."""

    results: Results
    device: str
    smoke: bool
    ends: float
    folder: Path = field(default_factory=Path)
    texts: list[str] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)
    samples: TokenBatch = field(default_factory=lambda: TokenBatch.of_ids([[0]], 0))
    labels: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    @property
    def left_s(self) -> float:
        return self.ends - time.monotonic()

    @property
    def tokens(self) -> float:
        """The mean tokens of a text, special ones included."""
        return sum(map(len, self.ids)) / len(self.ids)

    @property
    def seconds(self) -> tuple[float, float]:
        """How long each rate and each load is measured."""
        return (0.2, 1.0) if self.smoke else (_SECONDS, _LOAD_S)


@app.command()
def run(
    *,
    minutes: Annotated[float, typer.Option(help="The most that it may take.", min=1)] = _MINUTES,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Try the programs with a tiny network, also on a CPU.")
    ] = False,
    banking77: Annotated[
        Path, typer.Option(envvar="BANKING77_DIR", help="The folder of BANKING77's two CSV files.")
    ] = _DATA,
    out: Annotated[Path | None, typer.Option(help="The JSON file to write.")] = None,
) -> None:
    """Measure this machine's CUDA device, and write JSON and Markdown as the figures come.

    Example: python -m benchmarks.gpu --minutes 5 --out /tmp/gpu.json
    """
    if not (torch.cuda.is_available() or smoke):
        raise typer.BadParameter("torch sees no CUDA device here; --smoke tries it without one")
    configure_logging(LoggingSettings(level="warning"))
    results = Results(out or _default_path(smoke=smoke), {**machine(), **_device()})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bench = Bench(results, device, smoke, time.monotonic() + minutes * 60)
    _prepare(bench, banking77)
    _measure_offline(bench)
    _measure_served(bench)
    written = report.write(results)
    typer.echo(written.read_text(encoding="utf-8"))
    console.print(f"Written: {results.path}, {written}")
    if results.of("failed"):
        raise typer.Exit(1)


def _default_path(*, smoke: bool) -> Path:
    if smoke:
        return places.HOME / "gpu.json"
    return places.RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-gpu.json"


def _device() -> dict[str, Any]:
    """Return the facts about the device."""
    if not torch.cuda.is_available():
        return {"device": "none: the CPU"}
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "device_memory_gib": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
    }


@contextmanager
def _phase(bench: Bench, name: str) -> Iterator[None]:
    """Announce a phase and record its time; after a failure, the next phase runs."""
    console.print(f"{name} ({bench.left_s:.0f} s left)")
    start = time.monotonic()
    try:
        yield
    except Exception as error:  # noqa: BLE001
        # One that fails must not take the others' figures with it.
        reason = f"{type(error).__name__}: {error}"
        console.print(f"  failed: {reason}", markup=False)
        bench.results.add("failed", name=name, reason=reason[-2000:], trace=traceback.format_exc())
    else:
        bench.results.add("phase", name=name, seconds=time.monotonic() - start)
    report.write(bench.results)


def _prepare(bench: Bench, banking77: Path) -> None:
    """Make, register and load the model; a failure ends the benchmark."""
    data = benchmark_model.read_data(banking77)
    rows = [*islice(cycle([*data.test, *data.training]), _TEXTS)]
    size = model.TINY if bench.smoke else model.Size()
    model_folder, start = places.HOME / "gpu-model", time.monotonic()
    console.print("Making the model")
    facts = model.make(model_folder, rows, size, torch.device(bench.device))
    console.print("Registering it")
    name, _, version = _TAG.partition(":")
    shutil.rmtree(places.STORE / "models" / name, ignore_errors=True)
    for trail in (places.STORE / "kaiten").glob(f"{name}.*"):
        trail.unlink()
    (places.STORE / "models").mkdir(parents=True, exist_ok=True)
    benchmark_model.run_module("benchmarks.gpu.registration", str(model_folder), _TAG)
    bench.folder = places.STORE / "models" / name / version
    processor = load_processor(bench.folder, model.MAX_LENGTH)
    bench.texts = [row.text for row in rows]
    # In the order in which the model was given them.
    bench.labels = sorted({row.label for row in rows})
    bench.ids = [list(item.ids) for item in processor.prepare(bench.texts)]
    bench.samples = processor.samples()
    bench.results.conditions |= {
        "texts": data.source,
        "labels": len(bench.labels),
        "tokens_mean": round(bench.tokens, 1),
        "network": f"BERT, {size.layers} layers of {size.hidden}",
        "flops_per_token": size.flops(1, bench.tokens),
        "settings": f"batching.max_queue_items {_QUEUE_ITEMS}",
        **{f"head_{key}": round(value, 4) for key, value in asdict(facts).items()},
    }
    bench.results.add("phase", name="The model", seconds=time.monotonic() - start)


def _measure_offline(bench: Bench) -> None:
    pad_id, settings = bench.samples.pad_values["input_ids"], RunnerSettings(device=bench.device)
    exact: Engine | None = None
    with _phase(bench, "Offline: fp32, padded"):
        exact = offline.load_engine(
            bench.folder, settings.model_copy(update={"precision": "fp32"}), bench.samples
        )
        best = offline.answers(exact, bench.ids, pad_id).argmax(1)
        bench.expected = [bench.labels[index] for index in best]
        _rates(bench, "fp32, padded", exact)
    if bench.device == "cpu":
        return
    with _phase(bench, "Offline: half precision, padded"):
        padded = offline.PaddedHalf(bench.folder, settings)
        _rates(bench, report.PADDED, padded)
        _rates(bench, report.AS_THEY_COME, padded, by_length=False)
    with _phase(bench, "Offline: as served"):
        served_engine = offline.load_engine(bench.folder, settings, bench.samples)
        kind = "packed, half precision" if served_engine.packed else "padded, fp32"
        bench.results.conditions["served"] = kind
        if not served_engine.packed:
            # The limit of packing is of interest, whatever this network's answers come to.
            precision.TOLERANCE = math.inf
            served_engine = offline.load_engine(bench.folder, settings, bench.samples)
        _rates(bench, report.PACKED, served_engine)
        if exact is not None:
            same = offline.same_labels(exact, served_engine, bench.ids, pad_id)
            bench.results.add("parity", **same)


def _rates(bench: Bench, name: str, engine: Engine, *, by_length: bool = True) -> None:
    rate_s, _ = bench.seconds
    for size in _SIZES[:1] if bench.smoke else _SIZES:
        pad_id = bench.samples.pad_values["input_ids"]
        rates = offline.rate(engine, bench.ids, pad_id, size, rate_s, by_length=by_length)
        bench.results.add("offline", engine=name, batch=size, **rates)


def _measure_served(bench: Bench) -> None:
    headers = {"Authorization": f"Bearer {benchmark_model.token()}"}
    environment = {
        "KAITEN_BATCHING__MAX_QUEUE_ITEMS": str(_QUEUE_ITEMS),
        "KAITEN_RUNNERS__DEVICE": bench.device,
    }
    for layout in _SMOKE_LAYOUTS if bench.smoke else _LAYOUTS:
        start_s = min(_LAST_START_S, bench.left_s - _LAYOUT_S)
        if start_s < _LAYOUT_S:
            bench.results.add("skipped", layout=layout.name, reason="no time was left")
            continue
        with _phase(bench, f"Served: {layout.name}"):
            _measure_layout(bench, layout, environment, headers, start_s)


def _measure_layout(
    bench: Bench,
    layout: Layout,
    environment: dict[str, str],
    headers: dict[str, str],
    start_s: float,
) -> None:
    server, started = layout.server(_TAG, environment), time.monotonic()
    cuda = bench.device == "cuda"
    before = offline.free_memory() if cuda else 0
    with running(server, Configuration("as shipped"), {}, headers, start_s) as instance:
        served.wait_for_workers(instance, layout.workers, start_s)
        ready_s = time.monotonic() - started
        for shape in _SMOKE_SHAPES if bench.smoke else _SHAPES:
            figures = served.load(instance, shape, bench.texts, bench.tokens, bench.seconds[1])
            bench.results.add("served", layout=layout.name, **asdict(shape), **figures)
        bench.results.add(
            "layout",
            layout=layout.name,
            ready_s=ready_s,
            memory_mb=instance.memory_mb(),
            device_memory_mb=(before - offline.free_memory()) / 2**20 if cuda else 0.0,
            equal_labels=_equal(bench.expected, served.labels(instance, bench.texts, 256)),
        )


def _equal(expected: Sequence[str], labels: Sequence[str]) -> float:
    return sum(map(str.__eq__, expected, labels)) / max(1, len(expected))


if __name__ == "__main__":
    app()
