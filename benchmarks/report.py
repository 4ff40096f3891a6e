"""The Markdown report of a file of results, and its plot beside it."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks import places
from benchmarks.catalogue import PEERS
from benchmarks.plot import draw
from benchmarks.results import Results
from benchmarks.summary import (
    KAITEN,
    Mark,
    Spread,
    disturbed,
    ledger,
    losses,
    marks,
    offline,
    servers,
    shapes,
    spread,
)

_TITLES = {peer.name: peer.title for peer in PEERS} | {"kaiten": "Kaiten"}
_SHAPES = {
    "1x1": "1 text x 1 connection",
    "1x32": "1 text x 32",
    "1x128": "1 text x 128",
    "32x4": "32 texts x 4",
    "mixed": "1 text x 32, 5-400 tokens",
    "open70": "open loop at 70 % of the server's own 1x32",
}


def write_report(results: Results) -> Path:
    """Write the Markdown and the SVG beside the JSON, and return the Markdown's path."""
    path = results.path.with_suffix(".md")
    places.write_text(path.with_suffix(".svg"), draw(_bars(results)))
    places.write_text(path, markdown(results))
    return path


def markdown(results: Results) -> str:
    """Return the whole report."""
    parts = [
        f"# Benchmark of {results.conditions.get('date', 'an unknown date')}",
        _conditions(results),
        "## Texts a second, and latency",
        "Median over the rounds; below each, p50 / p99 in ms.",
        _speeds(results),
        _disturbances(results),
        "## Against the marks",
        _marks(marks(results)),
        "## Memory, start and labels",
        _servers(results),
        "## Where the CPU of a request goes",
        _ledger(results),
        "## What we lose at",
        _losses(results),
        "## Configurations",
        "The best of a sweep, for each shape.",
        _configurations(results),
        "## Left out, and failures",
        _list(_failures(results), "None."),
    ]
    return "\n\n".join(parts) + "\n"


def _title(server: str) -> str:
    return _TITLES.get(server, server.replace("-", " ").capitalize())


def _conditions(results: Results) -> str:
    facts = results.conditions
    dirty = " with uncommitted changes" if facts.get("dirty") else ""
    get = {"rounds": "?", "seconds": "?", **facts}.get
    machine = f"{get('cpu')}, {get('cores')} cores, {get('memory_gb')} GB"
    system = f"{get('os')}, Linux {get('kernel')}, Python {get('python')}"
    trained = f"MiniLM-L6 fine-tuned on {get('texts')}: {get('labels')} labels"
    lengths = f"{get('tokens_mean')} tokens on average, {get('tokens_mean_mixed')} in mixed"
    timing = f"{get('rounds')} interleaved rounds, {get('seconds')} s a shape"
    lines = [
        f"{machine}; {system}; commit {get('commit')}{dirty}.",
        f"{trained}, test accuracy {get('test_accuracy')}; texts of {lengths}.",
        f"{timing} (twice that for 32x4, mixed and open70), one server alive at a time.",
        "The load comes from the same machine: wrk on one thread; the open loop from Python.",
        "Kaiten's network lacks what no answer depends on (ADR 8); Triton's is a plain export.",
        f"Kaiten: {_versions(facts.get('versions', {}))}.",
    ]
    peers = facts.get("peers", {})
    lines += [f"{_title(name)}: {_versions(versions)}." for name, versions in peers.items()]
    return "\n".join(f"- {line}" for line in lines)


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _speeds(results: Results) -> str:
    names = shapes(results)
    rows = [
        [_title(server), *(_speed(results, server, shape) for shape in names)]
        for server in servers(results)
    ]
    limits = [
        Spread.of(row["texts_s"] for row in offline(results, name).values()) for name in names
    ]
    rows.append(
        ["*Offline limit*", *(f"*{limit.median:.0f}*" if limit else "" for limit in limits)]
    )
    return _table(["server", *(_SHAPES.get(name, name) for name in names)], rows)


def _disturbances(results: Results) -> str:
    disturbed_loads, all_loads = disturbed(results), results.of("load")
    if not disturbed_loads:
        return "The machine was left alone meanwhile."
    worst = max(row["other_cores"] for row in disturbed_loads)
    return (
        f"**In {len(disturbed_loads)} of {len(all_loads)} measurements other programs took up to "
        f"{worst:.1f} cores: these numbers are not to be trusted.**"
    )


def _speed(results: Results, server: str, shape: str) -> str:
    texts, p50, p99 = (
        spread(results, server, shape, field) for field in ("texts_s", "p50_ms", "p99_ms")
    )
    if texts is None or p50 is None or p99 is None:
        return "-"
    errors = spread(results, server, shape, "errors")
    failed = f"<br>{errors.high:.0f} errors" if errors and errors.high else ""
    return f"{texts.median:.0f}<br>{p50.median:.1f} / {p99.median:.1f}{failed}"


def _marks(mark_list: Sequence[Mark]) -> str:
    rows = []
    for mark in mark_list:
        sign = "at least" if mark.at_least else "at most"
        goal = f", goal {mark.goal:g}" if mark.goal else ""
        value = _spread(mark.result) if mark.result else "not measured"
        met = {True: "yes", False: "**no**", None: "-"}[mark.met]
        rows.append([mark.shape, mark.metric, f"{sign} {mark.bound:g}{goal}", value, met])
    return _table(["shape", "what", "mark", "median (least - most)", "met"], rows)


def _spread(figure: Spread) -> str:
    return f"{figure.median:.2f} ({figure.low:.2f} - {figure.high:.2f})"


def _servers(results: Results) -> str:
    rows = []
    for server in servers(results):
        records = results.of("server", server=server)
        fields = ("memory_settled_mb", "memory_peak_mb", "ready_s")
        figures = [Spread.of(row[field] for row in records) for field in fields]
        cpu = spread(results, server, "1x32", "cpu_ms_per_request")
        labels = min((row["share"] for row in results.of("labels", server=server)), default=None)
        rows.append(
            [
                _title(server),
                *(f"{figure.median:.1f}" if figure else "-" for figure in figures),
                f"{cpu.median:.2f}" if cpu else "-",
                f"{labels:.1%}" if labels is not None else "-",
            ]
        )
    heads = ["MiB settled", "MiB most", "s to an answer", "CPU ms a request (1x32)", "labels right"]
    note = (
        "Memory is the proportional set size of all processes, or what the largest has resident "
        "where that is more; the most is after any shape."
    )
    return _table(["server", *heads], rows) + "\n\n" + note


_PARTS = {
    "edge": "middleware, parsing, answer",
    "token": "a token that was seen before",
    "tokenise": "tokenising its text",
    "queue": "queue, and a lane's thread",
    "infer": "inference, in batches of 8 by length",
    "finish": "softmax and label",
    "observe": "metrics and the profile's record",
    "left over": "sockets, HTTP, event loop, padding, caches and threads in each other's way",
    "measured": "the server's own CPU a request at 1x32",
}


def _ledger(results: Results) -> str:
    rows = [[name, f"{value:.0f}", _PARTS.get(name, "")] for name, value in ledger(results)]
    return _table(["part", "us of CPU", "what"], rows) if rows else "Not measured."


def _losses(results: Results) -> str:
    if KAITEN not in servers(results):
        return "Kaiten was not measured."
    return _list(losses(results), "Nothing that was measured.")


def _configurations(results: Results) -> str:
    chosen = results.conditions.get("configurations", {})
    names = shapes(results)
    rows = [
        [_title(server), *(choices.get(name, "-") for name in names)]
        for server, choices in chosen.items()
    ]
    plans = results.conditions.get("offline_plans", {})
    rows.append(
        ["*Offline limit*", *(_plan(plans[name]) if name in plans else "" for name in names)]
    )
    return _table(["server", *names], rows)


def _plan(plan: dict[str, object]) -> str:
    return (
        f"{plan['streams']} x {plan['threads']} threads ({plan['spread']}), up to "
        f"{plan['max_size']} texts, {plan['max_tokens']} tokens, waste {plan['max_waste']}"
    )


def _failures(results: Results) -> list[str]:
    failures = []
    for row in [*results.of("absent"), *results.of("failure")]:
        where = row.get("shape") or row.get("configuration") or "installation"
        lines = str(row["error"]).strip().splitlines()
        failures.append(f"{_title(row['server'])} ({where}): `{' / '.join(lines[-4:])}`")
    return failures


def _list(lines: Sequence[str], empty: str) -> str:
    return "\n".join(f"- {line}" for line in lines) or empty


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = ["---" for _ in heads]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ruler, *rows))


def _bars(results: Results) -> dict[str, dict[str, float]]:
    """Return texts/s by shape and server, with the offline limit last."""
    groups: dict[str, dict[str, float]] = {}
    for shape in shapes(results):
        if shape == "open70":
            continue
        bars = {_title(s): spread(results, s, shape, "texts_s") for s in servers(results)}
        bars["Offline limit"] = Spread.of(
            row["texts_s"] for row in offline(results, shape).values()
        )
        medians = {name: value.median for name, value in bars.items() if value is not None}
        groups[_SHAPES.get(shape, shape)] = medians
    return groups
