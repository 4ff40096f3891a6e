"""The run: a sweep of each peer's configurations, then interleaved rounds of all servers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import httpx

from benchmarks import environments
from benchmarks.catalogue import Configuration, Server
from benchmarks.labels import Question, agreement
from benchmarks.limit import Limit, best_plan
from benchmarks.load import LoadFailed
from benchmarks.measuring import STEP, Capacity, Timing, measure
from benchmarks.offline import Plan
from benchmarks.results import Record, Results
from benchmarks.servers import Running, ServerFailed, running
from benchmarks.texts import SHAPES, Asked, Shape

_SWEPT = Timing(warm_s=1.0, seconds=2.0)
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Material:
    """What every server is given and asked."""

    values: Mapping[str, str]
    requests: Mapping[str, list[Asked]]
    questions: Sequence[Question]
    kaiten: Sequence[Server]
    headers: Mapping[str, str]


@dataclass
class Bench:
    """Servers, shapes and the configurations chosen for them so far."""

    material: Material
    shapes: Sequence[Shape]
    timing: Timing
    results: Results
    limits: Sequence[Limit]
    tell: Tell
    chosen: dict[str, dict[str, Configuration]] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    pair_plans: dict[str, Plan] = field(default_factory=dict)

    def run(self, peers: Sequence[Server], rounds: int, *, sweep: bool) -> None:
        """Install, choose, and measure in rounds; a peer that fails is listed and left out."""
        present = [peer for peer in peers if self._install(peer)]
        for peer in present:
            self._choose(peer, sweep=sweep)
        self._plan()
        servers = [*self.material.kaiten, *(peer for peer in present if self.chosen.get(peer.name))]
        for kaiten in self.material.kaiten:
            self.chosen[kaiten.name] = _for_all(self.shapes, kaiten.configurations[0])
        self.results.conditions["configurations"] = {
            name: {shape: choice.name for shape, choice in choices.items()}
            for name, choices in self.chosen.items()
        }
        for number in range(1, rounds + 1):
            turn = (number - 1) % len(servers)
            for server in [*servers[turn:], *servers[:turn]]:
                self._measure_server(server, number)

    def _install(self, peer: Server) -> bool:
        self.tell(f"{peer.title}: environment")
        try:
            versions = environments.ensure(peer)
        except ServerFailed as error:
            self._absent(peer, error)
            return False
        self.results.conditions.setdefault("peers", {})[peer.name] = versions
        return True

    def _absent(self, server: Server, error: Exception, **facts: object) -> None:
        self.tell(f"{server.title}: {error}")
        self.results.add("absent", server=server.name, error=str(error), **facts)

    def _choose(self, peer: Server, *, sweep: bool) -> None:
        """Keep the configuration with the most texts/s for each shape, and 1x32's for the open."""
        if not sweep or len(peer.configurations) == 1:
            self.chosen[peer.name] = _for_all(self.shapes, peer.configurations[0])
            return
        closed = _closed(self.shapes)
        tried: list[Record] = []
        for configuration in peer.configurations:
            tried += self._serve(peer, configuration, closed, _SWEPT, 0, "sweep")
        self.chosen[peer.name] = best_of(peer, tried, closed, self.shapes)

    def _measure_server(self, server: Server, number: int) -> None:
        choices = self.chosen[server.name]
        for configuration in _distinct(choices.values()):
            shapes = [shape for shape in self.shapes if choices.get(shape.name) == configuration]
            self._serve(server, configuration, shapes, self.timing, number, "load")

    def _serve(
        self,
        server: Server,
        configuration: Configuration,
        shapes: Iterable[Shape],
        timing: Timing,
        number: int,
        kind: str,
    ) -> list[Record]:
        """Start a server, measure the shapes, record, and stop it."""
        facts = {"server": server.name, "configuration": configuration.name, "round": number}
        headers = dict(self.material.headers) if server in self.material.kaiten else {}
        records: list[Record] = []
        try:
            with running(server, configuration, dict(self.material.values), headers) as instance:
                self.tell(
                    f"{server.title} ({configuration.name}): ready in {instance.ready_s:.1f} s"
                )
                capacity = Capacity()
                for shape in shapes:
                    records += self._shape(instance, shape, timing, capacity, facts, kind)
                    if kind == "load" and server in self.material.kaiten:
                        self._offline(server, shape, timing, number)
                settled = instance.memory_mb()
                # Last, as a batcher that learns from its load would carry this over.
                if kind == "load":
                    self._check_labels(instance, shapes, facts)
            if kind == "load":
                sizes = {"memory_settled_mb": settled, "memory_peak_mb": instance.peak_mb}
                self.results.add("server", **facts, ready_s=instance.ready_s, **sizes)
        except ServerFailed as error:
            self._absent(server, error, configuration=configuration.name, round=number)
        return records

    def _shape(
        self,
        instance: Running,
        shape: Shape,
        timing: Timing,
        capacity: Capacity,
        facts: Mapping[str, object],
        kind: str,
    ) -> list[Record]:
        number = int(str(facts["round"]))
        try:
            figures = measure(
                instance, shape, self.material.requests[shape.name], timing, number, capacity
            )
        except (LoadFailed, OSError, httpx.HTTPError) as error:
            self.results.add("failure", **facts, shape=shape.name, error=str(error))
            return []
        record = self.results.add(kind, **facts, shape=shape.name, **figures)
        self.tell(
            f"  {shape.name:7} {figures['texts_s']:6.0f} texts/s  p50 {figures['p50_ms']:6.0f}  "
            f"p99 {figures['p99_ms']:6.0f} ms  errors {figures['errors']}"
        )
        return [record]

    def _check_labels(
        self, instance: Running, shapes: Iterable[Shape], facts: Mapping[str, object]
    ) -> None:
        """Ask the questions once for each server and configuration."""
        about = {key: facts[key] for key in ("server", "configuration")}
        if self.results.of("labels", **about):
            return
        # A configuration for small batches only is not asked large ones.
        batches = any(shape.per_request > 1 for shape in shapes)
        share = agreement(instance, self.material.questions, batches=batches)
        self.results.add("labels", **about, share=share, asked=len(self.material.questions))
        self.tell(f"  labels  {share:.1%} of {len(self.material.questions)} right")

    def _plan(self) -> None:
        """Search the best way to compute each shape's windows, and write it down."""
        if not self.material.kaiten:
            return
        pairs = len(self.limits) > 1
        for shape in _closed(self.shapes):
            self.tell(f"Offline limit of {shape.name}: searching")
            plan = self.plans[shape.name] = best_plan(self.limits[0], shape)
            self.tell(f"  {plan}")
            if pairs and shape.in_flight > 1:
                self.pair_plans[shape.name] = best_plan(self.limits[0], shape, single_thread=True)
        self.results.conditions["offline_plans"] = {
            name: asdict(plan) for name, plan in self.plans.items()
        }

    def _offline(self, server: Server, shape: Shape, timing: Timing, number: int) -> None:
        """Measure the limit of the shape that Kaiten has just been measured at, while it idles."""
        if shape.name not in self.plans:
            return
        facts = {"server": server.name, "shape": shape.name, "round": number}
        seconds = timing.of(shape)
        if server == self.material.kaiten[0]:
            plan, limit = self.plans[shape.name], self.limits[0]
            figures = limit.measure(plan, shape, shape.in_flight, seconds, number * STEP)
            kind = "offline"
        elif shape.name not in self.pair_plans:
            # One text at a time leaves nothing to share out.
            return
        else:
            figures, kind = self._two_processes(shape, seconds, number), "offline_pair"
        self.results.add(kind, **facts, **figures)
        self.tell(
            f"  {'':7} {figures['texts_s']:6.0f} texts/s offline, p50 {figures['p50_ms']:.1f} ms"
        )

    def _two_processes(self, shape: Shape, seconds: float, number: int) -> dict[str, float]:
        """Return what two processes of one thread each reach together, each on half a window."""
        plan, half = self.pair_plans[shape.name], max(1, shape.in_flight // 2)
        for index, limit in enumerate(self.limits):
            limit.ask(plan, shape, half, seconds, number * STEP + index * 1024)
        figures = [limit.answer() for limit in self.limits]
        added = {key: sum(part[key] for part in figures) for key in ("texts_s", "tokens_s")}
        return {**added, "p50_ms": max(part["p50_ms"] for part in figures)}


def _closed(shapes: Iterable[Shape]) -> list[Shape]:
    return [shape for shape in shapes if not shape.open_loop]


def _for_all(shapes: Iterable[Shape], choice: Configuration) -> dict[str, Configuration]:
    return {shape.name: choice for shape in shapes}


def best_of(
    peer: Server, tried: Sequence[Record], closed: Sequence[Shape], shapes: Sequence[Shape]
) -> dict[str, Configuration]:
    """Return the best configuration of each shape; one with errors counts only if all have them."""
    by_name = {configuration.name: configuration for configuration in peer.configurations}
    choices: dict[str, Configuration] = {}
    for shape in closed:
        rows = [row for row in tried if row["shape"] == shape.name and row["texts_s"] > 0]
        if rows:
            best = max(rows, key=lambda row: (not row["errors"], row["texts_s"]))
            choices[shape.name] = by_name[best["configuration"]]
    reference = choices.get(SHAPES["1x32"].name) or next(iter(choices.values()), None)
    if reference is not None:
        opened = [shape for shape in shapes if shape.open_loop]
        choices |= _for_all(opened, reference)
    return choices


def _distinct(choices: Iterable[Configuration]) -> list[Configuration]:
    return list({choice.name: choice for choice in choices}.values())
