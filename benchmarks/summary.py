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
        numbers = list(values)
        return cls(median(numbers), min(numbers), max(numbers)) if numbers else None


@dataclass(frozen=True, slots=True)
class Mark:
    """The promise for a shape and its result; ``goal`` is the bound to aim for."""

    shape: str
    metric: str
    bound: float
    result: Spread | None
    goal: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Return whether the median keeps the bound; None where it was not measured."""
        if self.result is None:
            return None
        meets_minimum = self.result.median >= self.bound
        return meets_minimum if self.at_least else self.result.median <= self.bound


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
    names = list(dict.fromkeys(row["server"] for row in results.of("load")))
    shape = next(iter(shapes(results)), "")

    def order(server: str) -> tuple[bool, float]:
        speed = spread(results, server, shape, "texts_s")
        return not server.startswith(KAITEN), -(speed.median if speed else 0.0)

    return sorted(names, key=order)


def shapes(results: Results) -> list[str]:
    """Return the shapes that were measured, in the order of measuring."""
    return list(dict.fromkeys(row["shape"] for row in results.of("load")))


def spread(results: Results, server: str, shape: str, field: str) -> Spread | None:
    """Return a figure of a server at a shape over the rounds."""
    rows = results.of("load", server=server, shape=shape)
    return Spread.of(row[field] for row in rows if field in row)


def best_peers(results: Results, shape: str) -> dict[int, Record]:
    """Return the peer with the most texts/s of each round."""
    peers: dict[int, Record] = {}
    for row in results.of("load", shape=shape):
        best = peers.get(row["round"])
        better = best is None or row["texts_s"] > best["texts_s"]
        if not row["server"].startswith(KAITEN) and better:
            peers[row["round"]] = row
    return peers


def calmest_peers(results: Results) -> dict[int, Record]:
    """Return the peer with the lowest p50 of each round, each at 70 % of its own capacity."""
    peers: dict[int, Record] = {}
    for row in results.of("load", shape="open70"):
        if row["server"].startswith(KAITEN) or row["errors"]:
            continue
        calmest = peers.get(row["round"])
        if calmest is None or row["p50_ms"] < calmest["p50_ms"]:
            peers[row["round"]] = row
    return peers


def offline(results: Results, shape: str, *, server: str = KAITEN) -> dict[int, Record]:
    """Return the offline limit of each round, measured right after that server's own run."""
    kind = "offline" if server == KAITEN else "offline_pair"
    return {row["round"]: row for row in results.of(kind, shape=shape, server=server)}


def paired(
    results: Results,
    shape: str,
    references: dict[int, Record],
    compare: Callable[[Record, Record], float],
    server: str = KAITEN,
) -> Spread | None:
    """Compare a server with another record of the same round, round by round."""
    rows = results.of("load", server=server, shape=shape)
    pairs = [(row, references[row["round"]]) for row in rows if row["round"] in references]
    return Spread.of(compare(row, reference) for row, reference in pairs if reference["texts_s"])


def speed_ratio(ours: Record, theirs: Record) -> float:
    """Return how many times as many texts a second are ours."""
    return float(ours["texts_s"] / theirs["texts_s"])


def marks(results: Results) -> list[Mark]:
    """Return every mark of the shapes that were measured."""
    present = shapes(results)
    all_marks: list[Mark] = []
    for shape in present:
        if shape in _RATIOS:
            all_marks += _ratio_marks(results, shape)
    if "1x1" in present:
        all_marks += _single_marks(results)
    if "mixed" in present:
        waste = spread(results, KAITEN, "mixed", "padding")
        all_marks.append(Mark("mixed", "share of a batch that is padding", 0.10, waste))
    if "open70" in present:
        all_marks += _open_marks(results)
    return all_marks + _server_marks(results) + _worker_marks(results)


def _ratio_marks(results: Results, shape: str) -> list[Mark]:
    (bound, goal), limit = _RATIOS[shape]
    ratio = paired(results, shape, best_peers(results, shape), speed_ratio)
    ratio_marks = [Mark(shape, "texts/s, times the best peer's", bound, ratio, goal, at_least=True)]
    if limit is not None:
        ratio = paired(results, shape, offline(results, shape), speed_ratio)
        metric = "texts/s, share of the offline limit"
        ratio_marks.append(Mark(shape, metric, limit[0], ratio, limit[1], at_least=True))
    return ratio_marks


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
    worker_marks = []
    for server in servers(results):
        if not server.startswith(f"{KAITEN}-"):
            continue
        for shape in shapes(results):
            limit = offline(results, shape, server=server)
            ratio = paired(results, shape, limit, speed_ratio, server)
            if ratio is not None:
                metric = "two workers' texts/s, share of two offline processes'"
                worker_marks.append(Mark(shape, metric, 0.9, ratio, at_least=True))
    return worker_marks


def disturbed(results: Results) -> list[Record]:
    """Return the loads during which other programs of the machine took their share of it."""
    return [row for row in results.of("load") if row.get("other_cores", 0) > _DISTURBED_CORES]


def ledger(results: Results) -> list[tuple[str, float]]:
    """Return the CPU microseconds of a request at 1x32 by part, the remainder, and the sum."""
    measured, parts = spread(results, KAITEN, "1x32", "cpu_ms_per_request"), results.of("ledger")
    if measured is None or not parts:
        return []
    part_costs = [(name, value) for name, value in parts[-1].items() if name != "kind"]
    total = measured.median * 1000
    left_over = total - sum(value for _, value in part_costs)
    return [*part_costs, ("left over", left_over), ("measured", total)]


def losses(results: Results) -> list[str]:
    """Return a sentence for everything that a peer does better, by the medians."""
    sentences = []
    for server in servers(results):
        if server.startswith(KAITEN):
            continue
        for shape in shapes(results):
            sentences += _shape_losses(results, server, shape)
        for field, unit in (("memory_peak_mb", "MiB"), ("ready_s", "s to its first answer")):
            ours, theirs = (_of_server(results, name, field) for name in (KAITEN, server))
            if ours and theirs and theirs.median < ours.median:
                sentences.append(f"{server}: {theirs.median:.1f} {unit}, ours {ours.median:.1f}")
    return sentences


def _shape_losses(results: Results, server: str, shape: str) -> list[str]:
    fields = [("p50_ms", "ms p50"), ("p99_ms", "ms p99")]
    # In the open loop each server is asked as much as it takes, so more is not better.
    fields += [] if shape == "open70" else [("texts_s", "texts/s")]
    sentences = []
    for field, unit in fields:
        ours, theirs = (spread(results, name, shape, field) for name in (KAITEN, server))
        if ours is None or theirs is None or not theirs.median:
            continue
        better = theirs.median > ours.median if field == "texts_s" else theirs.median < ours.median
        if better:
            figures = f"{theirs.median:.1f} {unit}, ours {ours.median:.1f}"
            sentences.append(f"{server} at {shape}: {figures}")
    return sentences


def _of_server(results: Results, server: str, field: str) -> Spread | None:
    return Spread.of(row[field] for row in results.of("server", server=server))
