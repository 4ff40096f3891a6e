"""What a suite found: facts, and checks that hold or do not."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from benchmarks.places import write_json, write_text
from benchmarks.results import machine
from tests.acceptance.places import RESULTS

console = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Check:
    """A requirement and its result."""

    name: str
    passed: bool
    value: object


@dataclass
class Report:
    """A suite's results, printed as they come; ``scale`` is the share of its full size."""

    suite: str
    scale: float = 1.0
    parts: dict[str, dict[str, object]] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    conditions: Mapping[str, object] = field(default_factory=machine)

    def tell(self, part: str, **facts: object) -> None:
        """Keep facts; numbers are rounded to what a measurement can tell."""
        rounded = {name: _round(value) for name, value in facts.items()}
        self.parts.setdefault(part, {}).update(rounded)
        for name, value in rounded.items():
            console.print(f"  {part}: {name} = {value}", markup=False)

    def check(self, name: str, value: object, *, passed: bool) -> None:
        """Keep a check."""
        self.checks.append(Check(name, passed, _round(value)))
        console.print(
            f"  {'ok  ' if passed else 'FAIL'} {name}: {self.checks[-1].value}", markup=False
        )

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks)

    def write(self, folder: Path = RESULTS) -> Path:
        """Write the dated JSON and Markdown, each whole or not at all; a short run has its own."""
        short = "" if self.scale == 1 else "-short"
        path = folder / f"{datetime.now(UTC):%Y-%m-%d}-{self.suite}{short}.json"
        results = {
            "suite": self.suite,
            "scale": self.scale,
            "passed": self.passed,
            "conditions": self.conditions,
            "checks": [
                {"name": check.name, "passed": check.passed, "found": check.value}
                for check in self.checks
            ],
            "parts": self.parts,
        }
        write_json(path, results)
        write_text(path.with_suffix(".md"), "\n".join(self._lines()) + "\n")
        return path

    def _lines(self) -> Iterator[str]:
        machine = self.conditions
        size = "" if self.scale == 1 else f", at {self.scale:g} of its full size"
        yield f"# {self.suite}: {'passed' if self.passed else 'FAILED'}{size}"
        yield ""
        yield (
            f"{machine['date']}, {machine['cpu']}, {machine['cores']} cores, "
            f"commit {machine['commit']}{' and changes' if machine['dirty'] else ''}"
        )
        yield from ("", "| check | holds | found |", "|---|---|---|")
        for check in self.checks:
            yield f"| {check.name} | {'yes' if check.passed else '**no**'} | {check.value} |"
        for part, facts in self.parts.items():
            yield from ("", f"## {part}", "", "| fact | value |", "|---|---|")
            yield from (f"| {name} | {value} |" for name, value in facts.items())


def _round(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, list):
        return [_round(item) for item in value]
    return value
