"""`python -m benchmarks`: measure all servers, or report a run."""

import shutil
import signal
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown

from benchmarks import places
from benchmarks.catalogue import PEERS, Server
from benchmarks.measuring import Timing
from benchmarks.report import write_report
from benchmarks.results import Results, machine
from benchmarks.texts import SHAPES, Shape

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console(stderr=True, highlight=False)
_ROUNDS, _SECONDS = 5, 4.0
_QUICK = Timing(warm_s=1.0, seconds=2.0)
_QUICK_PEERS = "litserve"
_DATA = places.ROOT.parent / "shared" / "data" / "banking77"


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    *,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds.", min=1)] = _ROUNDS,
    peers: Annotated[str | None, typer.Option(help="Only these, as a,b; 'none' for none.")] = None,
    shapes: Annotated[str | None, typer.Option(help="Only these, as 1x1,1x32.")] = None,
    seconds: Annotated[float, typer.Option(help="Measured seconds a shape.", min=1)] = _SECONDS,
    sweep: Annotated[bool, typer.Option(help="Try each peer's configurations first.")] = True,
    with_kaiten: Annotated[bool, typer.Option("--kaiten/--no-kaiten", help="Kaiten too.")] = True,
    workers: Annotated[bool, typer.Option(help="Kaiten with two workers too.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke test, not a result.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the records as JSON.")] = False,
    banking77: Annotated[
        Path, typer.Option(envvar="BANKING77_DIR", help="The folder of BANKING77's two CSV files.")
    ] = _DATA,
    out: Annotated[Path | None, typer.Option(help="The JSON file to write.")] = None,
) -> None:
    """Measure Kaiten, its peers and the offline limit, and write JSON, Markdown and SVG.

    Example: python -m benchmarks --rounds 3 --peers triton,litserve --shapes 1x1,1x32
    """
    if context.invoked_subcommand:
        return
    if shutil.which("wrk") is None:
        raise typer.BadParameter("wrk is missing: apt-get install wrk, or brew install wrk")
    signal.signal(signal.SIGTERM, _end)
    chosen_peers = _peers(_QUICK_PEERS if quick and peers is None else peers)
    chosen_shapes = _shapes(shapes)
    # Only such a run is a dated result.
    enough = rounds >= _ROUNDS and seconds >= _SECONDS and sweep and workers and with_kaiten
    full_run = enough and not (quick or peers or shapes)
    path = out or _default_path(full_run=full_run)
    timing = _QUICK if quick else Timing(seconds=seconds)
    results = Results(path, {**machine(), "rounds": 1 if quick else rounds})
    counts = [count for count in (1, 2) if with_kaiten and (count == 1 or (workers and not quick))]
    _measure(
        results, chosen_peers, chosen_shapes, timing, counts, banking77, sweep=sweep and not quick
    )
    _conclude(results, as_json=as_json)


def _end(number: int, _: object) -> None:
    """Leave by an exception, which ends the server that runs; a second signal must not cut in."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def _measure(
    results: Results,
    peers: list[Server],
    shapes: list[Shape],
    timing: Timing,
    workers: list[int],
    banking77: Path,
    *,
    sweep: bool,
) -> None:
    # What imports torch is imported only here: `report` and --help need none of it.
    from benchmarks import ledger
    from benchmarks.limit import Limit
    from benchmarks.preparation import prepare
    from benchmarks.rounds import Bench

    prepared = prepare(banking77, shapes, workers)
    results.conditions |= prepared.conditions
    results.conditions |= {"seconds": timing.seconds, "warm_s": timing.warm_s}
    with ExitStack() as stack:
        limits = [
            stack.enter_context(Limit(prepared.onnx, prepared.tokenizer, prepared.texts))
            for _ in range(max(workers, default=0))
        ]
        bench = Bench(prepared.material, shapes, timing, results, limits, console.print)
        bench.run(peers, results.conditions["rounds"], sweep=sweep)
    if workers:
        console.print("CPU of a request, part by part")
        results.add("ledger", **ledger.run(prepared.onnx.parents[1], prepared.texts))


@app.command()
def report(file: Annotated[Path, typer.Argument(help="A JSON file of results.")]) -> None:
    """Write the Markdown table and the plot of measured records, also of a run cut short.

    Example: python -m benchmarks report benchmarks/results/2026-11-23.json
    """
    _conclude(Results.load(file), as_json=False)


def _conclude(results: Results, *, as_json: bool) -> None:
    markdown = write_report(results)
    if as_json:
        typer.echo(results.path.read_text(encoding="utf-8"))
    else:
        # A terminal's tables have no line breaks in a cell.
        text = markdown.read_text(encoding="utf-8").replace("<br>", ", ")
        Console().print(Markdown(text))
    console.print(f"Written: {results.path}, {markdown}, {markdown.with_suffix('.svg')}")


def _peers(names: str | None) -> list[Server]:
    peers_by_name = {peer.name: peer for peer in PEERS}
    if names == "none":
        return []
    return [peers_by_name[name] for name in _select_names(names, list(peers_by_name), "peers")]


def _shapes(names: str | None) -> list[Shape]:
    # In the order of SHAPES: the open loop needs the capacity that 1x32 measures.
    chosen = _select_names(names, list(SHAPES), "shapes")
    return [shape for name, shape in SHAPES.items() if name in chosen]


def _select_names(names: str | None, available_names: list[str], param_hint: str) -> list[str]:
    chosen = available_names if names is None else [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in available_names:
            raise typer.BadParameter(
                f"{name!r} is none of {', '.join(available_names)}", param_hint=param_hint
            )
    return chosen


def _default_path(*, full_run: bool) -> Path:
    if full_run:
        return places.RESULTS / f"{datetime.now(UTC):%Y-%m-%d}.json"
    return places.HOME / "last.json"


if __name__ == "__main__":
    app()
