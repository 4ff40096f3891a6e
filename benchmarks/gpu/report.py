"""The tables of a run on a GPU, also of one that was cut short."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import places
from benchmarks.results import Record, Results

PADDED = "half precision, padded, sorted by length"
AS_THEY_COME = "half precision, padded, as texts come"
PACKED = "half precision, packed"
# Dense bf16, by the vendor's data sheets, in 1e12 a second; for others no utilisation is stated.
_PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0}
_HTTP = ("requests_s", "texts_s", "tokens_s")


def write(results: Results) -> Path:
    """Write the Markdown beside the JSON, and return its path."""
    path = results.path.with_suffix(".md")
    places.write_text(path, "\n".join(_lines(results)) + "\n")
    return path


def _lines(results: Results) -> Iterable[str]:
    facts = results.conditions
    yield f"# On {facts['device']}, {facts['date']}"
    yield ""
    yield from _conditions(facts)
    yield from _offline(results)
    yield from _served(results)
    for row in results.of("skipped"):
        yield f"- Not measured: {row['layout']}: {row['reason']}"
    for row in results.of("failed"):
        yield f"- Failed: {row['name']}: {row['reason'].splitlines()[0]}"


def _conditions(facts: Record) -> Iterable[str]:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    commit = f"{facts['commit'] or 'unknown'}{', changed' if facts['dirty'] else ''}"
    yield f"- {facts['cpu']}, {facts['cores']} cores; {facts['os']}; Python {facts['python']}"
    yield f"- commit {commit}; {versions}"
    if "network" in facts:
        yield (
            f"- {facts['network']}, seeded, {facts['labels']} labels, right on "
            f"{facts['head_right']:.1%}; {facts['texts']} texts of {facts['tokens_mean']} tokens "
            f"on average; served {facts.get('served', 'by torch')}, with {facts['settings']}"
        )
    yield ""


def _offline(results: Results) -> Iterable[str]:
    rows = results.of("offline")
    if not rows:
        return
    yield "## Without HTTP, and without tokenising"
    yield ""
    yield "| engine | texts a batch | texts/s | tokens/s | TFLOP/s | of the device's peak |"
    yield "|---|---:|---:|---:|---:|---:|"
    peak = _peak(results.conditions["device"])
    for row in rows:
        tflops = row["tokens_s"] * results.conditions["flops_per_token"] / 1e12
        half = row["engine"] in {PADDED, AS_THEY_COME, PACKED}
        share = f"{tflops / peak:.0%}" if peak and half else "-"
        yield (
            f"| {row['engine']} | {row['batch']} | {row['texts_s']:,.0f} | "
            f"{row['tokens_s']:,.0f} | {tflops:.1f} | {share} |"
        )
    yield ""
    for padded in (AS_THEY_COME, PADDED):
        yield from _times(rows, padded)
    for row in results.of("parity"):
        yield (
            f"- Labels equal to fp32 on {row['equal_labels']:.2%} of {row['texts']} texts; a "
            f"probability differs by {row['max_difference']:.3f} at the most."
        )
    yield ""


def _times(rows: Sequence[Record], padded: str) -> Iterable[str]:
    """Yield how much faster packed is, batch by batch."""
    by_size = {row["batch"]: row["tokens_s"] for row in rows if row["engine"] == padded}
    packed = {row["batch"]: row["tokens_s"] for row in rows if row["engine"] == PACKED}
    ratios = [
        f"{packed[size] / by_size[size]:.2f} times at {size} texts"
        for size in packed
        if by_size.get(size)
    ]
    if ratios:
        yield f"- Packed, against {padded}: {', '.join(ratios)}."


def _served(results: Results) -> Iterable[str]:
    rows = results.of("served")
    if not rows:
        return
    offline = results.of("offline")
    packed = [row for row in offline if row["engine"] == PACKED] or offline
    limit = max((row["tokens_s"] for row in packed), default=0.0)
    yield "## Served"
    yield ""
    yield (
        "| layout | texts x connections | requests/s | texts/s | tokens/s | of the limit | "
        "p50 ms | p99 ms | texts a batch | server's cores | requests/s a core | clients' cores | "
        "errors |"
    )
    yield "|---|---|" + "---:|" * 11
    for row in rows:
        share = f"{row['tokens_s'] / limit:.2f}" if limit else "-"
        per_core = row["requests_s"] / max(0.01, row["server_cores"])
        rates = " | ".join(f"{row[key]:,.0f}" for key in _HTTP)
        yield (
            f"| {row['layout']} | {row['texts']} x {row['connections']} | {rates} | {share} | "
            f"{row['p50_ms']:.0f} | {row['p99_ms']:.0f} | {row['batch']:.0f} | "
            f"{row['server_cores']:.1f} | {per_core:,.0f} | {row['client_cores']:.1f} | "
            f"{row['errors']} |"
        )
    yield ""
    yield "| layout | ready in s | memory MiB | on the device MiB | labels as fp32's |"
    yield "|---|---:|---:|---:|---:|"
    for row in results.of("layout"):
        yield (
            f"| {row['layout']} | {row['ready_s']:.1f} | {row['memory_mb']:,.0f} | "
            f"{row['device_memory_mb']:,.0f} | {row['equal_labels']:.2%} |"
        )
    yield ""


def _peak(device: str) -> float | None:
    return next((peak for name, peak in _PEAK_TFLOPS.items() if name in device.split()), None)
