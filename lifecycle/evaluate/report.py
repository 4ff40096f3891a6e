"""The report of a validation: what was measured, on what, and whether that will do."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from kaiten.settings.models import ValidationSettings
from lifecycle.evaluate.measures import Comparison, Measures


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(_Part):
    """The rows: the name and SHA-256 of their file, and how many there are. No text."""

    file: str
    digest: str
    rows: int


class Cost(_Part):
    """What answering takes on this device: one text at a time, memory there, and files.

    On a CPU the memory is the process's, on a CUDA device what torch has held on it.
    """

    device: str
    latency_p50_ms: float
    latency_p99_ms: float
    memory_mb: float
    size_mb: float


class Golden(_Part):
    """Rows that must be answered as told, and the numbers of those that are not."""

    file: str
    digest: str
    rows: int
    wrong: list[int]


class Check(_Part):
    """One threshold: what was found, what it must be at least or at most, and whether it is."""

    name: str
    found: float
    bound: float
    at_least: bool
    passed: bool

    def __str__(self) -> str:
        needed = "at least" if self.at_least else "at most"
        return f"{self.name} is {self.found:.4g}, and must be {needed} {self.bound:.4g}"


class Report(_Part):
    """A version's report; ``card`` is the SHA-256 of the card of what was measured.

    ``estimate_error`` is the mean absolute error of the accuracy as it is estimated without labels.
    """

    tag: str
    card: str
    at: datetime
    versions: dict[str, str]
    data: Data
    measures: Measures
    slices: dict[str, dict[str, tuple[int, float]]] = Field(default_factory=dict)
    comparison: Comparison | None = None
    golden: Golden | None = None
    cost: Cost
    checks: list[Check]
    estimate_error: float | None = None

    @property
    def passed(self) -> bool:
        """Whether every threshold is kept."""
        return all(check.passed for check in self.checks)

    @property
    def reason(self) -> str:
        """What does not pass, in words; empty where all does."""
        return "; ".join(str(check) for check in self.checks if not check.passed)


def checks(
    measures: Measures,
    cost: Cost,
    comparison: Comparison | None,
    golden: Golden | None,
    limits: ValidationSettings,
) -> list[Check]:
    """Hold what was measured against the thresholds."""
    return [*_checks(measures, cost, comparison, golden, limits)]


def _checks(
    measures: Measures,
    cost: Cost,
    comparison: Comparison | None,
    golden: Golden | None,
    limits: ValidationSettings,
) -> Iterator[Check]:
    yield _at_least("accuracy", measures.accuracy, limits.min_accuracy)
    yield _at_least("macro F1", measures.macro.f1, limits.min_macro_f1)
    error, most = measures.calibration_error, limits.max_calibration_error
    yield _at_most("calibration error", error, most)
    yield _at_most("latency p99 in ms", cost.latency_p99_ms, limits.max_latency_p99_ms)
    yield _at_most("memory in MiB", cost.memory_mb, limits.max_memory_mib)
    yield _at_most("size in MiB", cost.size_mb, limits.max_size_mib)
    if golden is not None:
        yield _at_most("golden rows answered otherwise", len(golden.wrong), 0)
    if comparison is not None:
        against = comparison.against
        loss = -comparison.difference
        yield _at_most(f"accuracy lost against {against}", loss, limits.max_accuracy_drop)
        # Below nothing, it is worse beyond what the rows' chance explains.
        name = f"upper end of the accuracy gained on {against}"
        yield _at_least(name, comparison.high, 0)


def _at_least(name: str, found: float, bound: float) -> Check:
    return Check(name=name, found=found, bound=bound, at_least=True, passed=found >= bound)


def _at_most(name: str, found: float, bound: float) -> Check:
    return Check(name=name, found=found, bound=bound, at_least=False, passed=found <= bound)


def worst(measures: Measures, count: int) -> Sequence[tuple[str, str, int]]:
    """Return the pairs of labels that are mistaken most: the right one, the answered, and rows."""
    labels = [*measures.per_class]
    mistakes = [
        (labels[right], labels[answered], rows)
        for right, row in enumerate(measures.confusion)
        for answered, rows in enumerate(row)
        if rows and right != answered
    ]
    return sorted(mistakes, key=lambda mistake: -mistake[2])[:count]
