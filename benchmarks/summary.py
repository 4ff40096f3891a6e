"""Figures, ratios and marks of measured records; nothing here measures or prints."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from benchmarks.results import Record, Results

KAITEN = "kaiten"
# The kernel's own work for the sockets is counted here too, hence some room.
_DISTURBED_CORES = 0.2


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of the rounds, between the least and the most."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """Return the spread of some values; None of no values."""
        kept = list(values)
        return cls(median(kept), min(kept), max(kept)) if kept else None


@dataclass(frozen=True, slots=True)
class Mark:
    """The promise for a shape and its result; ``goal`` is the bound to aim for."""

    shape: str
    what: str
    bound: float
    found: Spread | None
    goal: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Return whether the median keeps the bound; None where it was not measured."""
        if self.found is None:
            return None
        kept = self.found.median >= self.bound
        return kept if self.at_least else self.found.median <= self.bound


# Shape: (texts/s against the best peer, its goal), (texts/s against the offline limit, its goal).
_RATIOS: dict[str, tuple[tuple[float, float | None], tuple[float, float | None] | None]] = {
    "1x1": ((2.5, None), None),
    "1x32": ((2.0, 2.5), (0.65, 0.75)),
    "1x128": ((2.0, 2.5), (0.65, 0.75)),
    "32x4": ((2.5, 3.0), (0.92, None)),
    "mixed": ((3.0, None), (0.75, None)),
}


def servers(results: Results) -> list[str]:
    """Return the servers that were measured, Kaiten first, then by texts/s at the first shape."""
    found = list(dict.fromkeys(row["server"] for row in results.of("load")))
    shape = next(iter(shapes(results)), "")

    def order(server: str) -> tuple[bool, float]:
        speed = spread(results, server, shape, "texts_s")
        return not server.startswith(KAITEN), -(speed.median if speed else 0.0)

    return sorted(found, key=order)


def shapes(results: Results) -> list[str]:
    """Return the shapes that were measured, in the order of measuring."""
    return list(dict.fromkeys(row["shape"] for row in results.of("load")))


def spread(results: Results, server: str, shape: str, field: str) -> Spread | None:
    """Return a figure of a server at a shape over the rounds."""
    rows = results.of("load", server=server, shape=shape)
    return Spread.of(row[field] for row in rows if field in row)


def best_peers(results: Results, shape: str) -> dict[int, Record]:
    """Return the peer with the most texts/s of each round."""
    found: dict[int, Record] = {}
    for row in results.of("load", shape=shape):
        known = found.get(row["round"])
        better = known is None or row["texts_s"] > known["texts_s"]
        if not row["server"].startswith(KAITEN) and better:
            found[row["round"]] = row
    return found


def calmest_peers(results: Results) -> dict[int, Record]:
    """Return the peer with the lowest p50 of each round, each at 70 % of its own capacity."""
    found: dict[int, Record] = {}
    for row in results.of("load", shape="open70"):
        if row["server"].startswith(KAITEN) or row["errors"]:
            continue
        known = found.get(row["round"])
        if known is None or row["p50_ms"] < known["p50_ms"]:
            found[row["round"]] = row
    return found


def offline(results: Results, shape: str, *, server: str = KAITEN) -> dict[int, Record]:
    """Return the offline limit of each round, measured right after that server's own run."""
    kind = "offline" if server == KAITEN else "offline_pair"
    return {row["round"]: row for row in results.of(kind, shape=shape, server=server)}


def paired(
    results: Results,
    shape: str,
    others: dict[int, Record],
    compare: Callable[[Record, Record], float],
    server: str = KAITEN,
) -> Spread | None:
    """Compare a server with another record of the same round, round by round."""
    rows = results.of("load", server=server, shape=shape)
    pairs = [(row, others[row["round"]]) for row in rows if row["round"] in others]
    return Spread.of(compare(row, other) for row, other in pairs if other["texts_s"])


def speed_ratio(ours: Record, theirs: Record) -> float:
    """Return how many times as many texts a second are ours."""
    return float(ours["texts_s"] / theirs["texts_s"])


def marks(results: Results) -> list[Mark]:
    """Return every mark of the shapes that were measured."""
    present = shapes(results)
    found: list[Mark] = []
    for shape in present:
        if shape in _RATIOS:
            found += _ratio_marks(results, shape)
    if "1x1" in present:
        found += _single_marks(results)
    if "mixed" in present:
        waste = spread(results, KAITEN, "mixed", "padding")
        found.append(Mark("mixed", "share of a batch that is padding", 0.10, waste))
    if "open70" in present:
        found += _open_marks(results)
    return found + _server_marks(results) + _worker_marks(results)


def _ratio_marks(results: Results, shape: str) -> list[Mark]:
    (bound, goal), limit = _RATIOS[shape]
    ratio = paired(results, shape, best_peers(results, shape), speed_ratio)
    found = [Mark(shape, "texts/s, times the best peer's", bound, ratio, goal, at_least=True)]
    if limit is not None:
        ratio = paired(results, shape, offline(results, shape), speed_ratio)
        what = "texts/s, share of the offline limit"
        found.append(Mark(shape, what, limit[0], ratio, limit[1], at_least=True))
    return found


def _single_marks(results: Results) -> list[Mark]:
    peers, limit = best_peers(results, "1x1"), offline(results, "1x1")
    share = paired(results, "1x1", peers, lambda ours, theirs: ours["p50_ms"] / theirs["p50_ms"])
    over = paired(results, "1x1", limit, lambda ours, bare: ours["p50_ms"] - bare["p50_ms"])
    return [
        Mark("1x1", "p50, share of the best peer's", 0.4, share),
        Mark("1x1", "p50, ms over the bare forward", 3.0, over),
    ]


def _open_marks(results: Results) -> list[Mark]:
    against = paired(
        results,
        "open70",
        calmest_peers(results),
        lambda ours, peer: ours["p99_ms"] / peer["p50_ms"],
    )
    rows = results.of("load", server=KAITEN, shape="open70")
    tail = Spread.of(row["p99_ms"] / row["p50_ms"] for row in rows if row["p50_ms"])
    return [
        Mark("open70", "p99, share of the lowest p50 of a peer", 1.0, against),
        Mark("open70", "p99, times the p50", 5.0, tail),
    ]


def _server_marks(results: Results) -> list[Mark]:
    rows = results.of("server", server=KAITEN)
    labels = results.of("labels", server=KAITEN)
    errors = [row["errors"] for row in results.of("load", server=KAITEN)]
    return [
        Mark("all", "errors in a measurement", 0, Spread.of(errors)),
        Mark("all", "MiB at the most", 600, Spread.of(r["memory_peak_mb"] for r in rows)),
        Mark("all", "s from start to an answer", 10, Spread.of(r["ready_s"] for r in rows)),
        Mark(
            "all",
            "share of right labels",
            1.0,
            Spread.of(row["share"] for row in labels),
            at_least=True,
        ),
    ]


def _worker_marks(results: Results) -> list[Mark]:
    found = []
    for server in servers(results):
        if not server.startswith(f"{KAITEN}-"):
            continue
        for shape in shapes(results):
            limit = offline(results, shape, server=server)
            ratio = paired(results, shape, limit, speed_ratio, server)
            if ratio is not None:
                what = "two workers' texts/s, share of two offline processes'"
                found.append(Mark(shape, what, 0.9, ratio, at_least=True))
    return found


def disturbed(results: Results) -> list[Record]:
    """Return the loads during which other programs of the machine took their share of it."""
    return [row for row in results.of("load") if row.get("other_cores", 0) > _DISTURBED_CORES]


def ledger(results: Results) -> list[tuple[str, float]]:
    """Return the CPU microseconds of a request at 1x32 by part, the remainder, and the sum."""
    measured, parts = spread(results, KAITEN, "1x32", "cpu_ms_per_request"), results.of("ledger")
    if measured is None or not parts:
        return []
    known = [(name, value) for name, value in parts[-1].items() if name != "kind"]
    total = measured.median * 1000
    left_over = total - sum(value for _, value in known)
    return [*known, ("left over", left_over), ("measured", total)]


def losses(results: Results) -> list[str]:
    """Return a sentence for everything that a peer does better, by the medians."""
    found = []
    for server in servers(results):
        if server.startswith(KAITEN):
            continue
        for shape in shapes(results):
            found += _lost(results, server, shape)
        for field, what in (("memory_peak_mb", "MiB"), ("ready_s", "s to its first answer")):
            ours, theirs = (_of_server(results, name, field) for name in (KAITEN, server))
            if ours and theirs and theirs.median < ours.median:
                found.append(f"{server}: {theirs.median:.1f} {what}, ours {ours.median:.1f}")
    return found


def _lost(results: Results, server: str, shape: str) -> list[str]:
    fields = [("p50_ms", "ms p50"), ("p99_ms", "ms p99")]
    # In the open loop each server is asked as much as it takes, so more is not better.
    fields += [] if shape == "open70" else [("texts_s", "texts/s")]
    found = []
    for field, what in fields:
        ours, theirs = (spread(results, name, shape, field) for name in (KAITEN, server))
        if ours is None or theirs is None or not theirs.median:
            continue
        better = theirs.median > ours.median if field == "texts_s" else theirs.median < ours.median
        if better:
            figures = f"{theirs.median:.1f} {what}, ours {ours.median:.1f}"
            found.append(f"{server} at {shape}: {figures}")
    return found


def _of_server(results: Results, server: str, field: str) -> Spread | None:
    return Spread.of(row[field] for row in results.of("server", server=server))
