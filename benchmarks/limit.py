"""The offline limit: the lasting process that measures it, and the search for its best plan."""

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks import places
from benchmarks.offline import Plan
from benchmarks.texts import Shape

_TRY_S = 0.7
_SIZES = (1, 2, 4, 8, 16, 32)
_WASTES = (0.02, 0.05, 0.2, 1.0)
_TOKENS = (256, 512, 1024)


class Limit:
    """Measures windows of texts in a process of its own, which waits in between."""

    def __init__(self, onnx: Path, tokenizer: Path, texts: Path) -> None:
        self._popen = subprocess.Popen(
            [str(places.PYTHON), "-m", "benchmarks.offline", str(onnx), str(tokenizer), str(texts)],
            cwd=places.ROOT,
            env=places.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._popen.kill()
        self._popen.communicate()

    def ask(self, plan: Plan, shape: Shape, window: int, seconds: float, first: int = 0) -> None:
        """Have it measure, without waiting."""
        request = {"kind": kind(shape), "plan": asdict(plan), "window": window, "seconds": seconds}
        assert self._popen.stdin is not None
        self._popen.stdin.write(json.dumps({**request, "first": first}) + "\n")
        self._popen.stdin.flush()

    def answer(self) -> dict[str, float]:
        """Return texts_s, tokens_s and p50_ms of the run."""
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        if not line:
            raise RuntimeError("The offline process has ended.")
        figures: dict[str, float] = json.loads(line)
        return figures

    def measure(
        self, plan: Plan, shape: Shape, window: int, seconds: float, first: int = 0
    ) -> dict[str, float]:
        """Return texts_s, tokens_s and p50_ms over windows of so many texts."""
        self.ask(plan, shape, window, seconds, first)
        return self.answer()


def kind(shape: Shape) -> str:
    """Return the name of the texts that a shape is asked, in the file of texts."""
    return "mixed" if shape.mixed else "short"


def best_plan(limit: Limit, shape: Shape, *, single_thread: bool = False) -> Plan:
    """Search one choice after another: streams and sizes first, then waste, then tokens."""

    def rate(plan: Plan) -> float:
        window = max(1, shape.in_flight // 2) if single_thread else shape.in_flight
        return limit.measure(plan, shape, window, _TRY_S)["texts_s"]

    computing = [Plan(threads=1)] if single_thread else _thread_plans(shape)
    for plan in computing:
        # The first run of an engine is slow.
        limit.measure(plan, shape, shape.in_flight, _TRY_S)
    if shape.in_flight == 1:
        return _best(computing, rate)
    sized = [replace(plan, max_size=size) for plan in computing for size in _SIZES]
    best = _best(sized, rate)
    best = _best([best, *(replace(best, max_waste=waste) for waste in _WASTES)], rate)
    return _best([best, *(replace(best, max_tokens=tokens) for tokens in _TOKENS)], rate)


def _thread_plans(shape: Shape) -> list[Plan]:
    if shape.in_flight == 1:
        return [Plan(threads=2), Plan(threads=1)]
    apart = Plan(threads=1, streams=2)
    return [Plan(threads=2), apart, replace(apart, spread="halves")]


def _best(plans: list[Plan], rate: Callable[[Plan], float]) -> Plan:
    rates = {plan: rate(plan) for plan in plans}
    return max(plans, key=lambda plan: rates[plan])


def write_texts(path: Path, texts: Mapping[str, list[str]]) -> None:
    """Write the texts that the process is started with, by kind."""
    places.write_json(path, dict(texts))
