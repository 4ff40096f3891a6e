"""The validation report: measures of a version on labelled rows, and the thresholds they meet."""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from lifecycle.evaluate.measures import ClassificationMeasures, Comparison


class _ReportPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSummary(_ReportPart):
    """The name and SHA-256 of the file of rows, and their number; never a text.

    ``labels_were_indices``: the file has indices of the model's labels, not their names.
    """

    file: str
    digest: str
    rows: int
    labels_were_indices: bool = False


class Cost(_ReportPart):
    """Latency of one text at a time, memory, and size of the files.

    On a CPU the memory is the process's; on a CUDA device it is what torch has reserved there.
    """

    device: str
    latency_p50_ms: float
    latency_p99_ms: float
    memory_mib: float
    size_mib: float


class GoldenResult(_ReportPart):
    """The golden rows, and the numbers of those that are not predicted as labelled."""

    file: str
    digest: str
    rows: int
    wrong: list[int]


class ThresholdCheck(_ReportPart):
    """A measured value, its bound, and whether it is within the bound.

    ``setting`` is the path of the setting with the bound, empty for a bound that is fixed.
    """

    name: str
    value: float
    bound: float
    at_least: bool
    passed: bool
    setting: str = ""

    def __str__(self) -> str:
        relation = "at least" if self.at_least else "at most"
        source = f" ({self.setting})" if self.setting else ""
        return f"{self.name} is {self.value:.4g}, and must be {relation} {self.bound:.4g}{source}"


class ValidationReport(_ReportPart):
    """The report on a version; ``card`` is the SHA-256 of its model card.

    ``estimate_error`` is the mean absolute error of the accuracy estimate without labels.
    """

    tag: str
    card: str
    at: datetime
    versions: dict[str, str]
    data: DataSummary
    measures: ClassificationMeasures
    slices: dict[str, dict[str, tuple[int, float]]] = Field(default_factory=dict)
    comparison: Comparison | None = None
    golden: GoldenResult | None = None
    cost: Cost
    checks: list[ThresholdCheck]
    estimate_error: float | None = None

    @property
    def passed(self) -> bool:
        """Whether all checks passed."""
        return all(check.passed for check in self.checks)

    @property
    def reason(self) -> str:
        """The checks that failed, in words; empty if all passed."""
        return "; ".join(str(check) for check in self.checks if not check.passed)


def check_thresholds(
    measures: ClassificationMeasures,
    cost: Cost,
    comparison: Comparison | None,
    golden: GoldenResult | None,
    threshold: Callable[[str], tuple[float, str]],
) -> Iterator[ThresholdCheck]:
    """Yield a check for each threshold.

    ``threshold`` returns the bound of a name in ValidationThresholds, and the setting with it.
    """
    yield _at_least("accuracy", measures.accuracy, *threshold("min_accuracy"))
    yield _at_least("macro F1", measures.macro.f1, *threshold("min_macro_f1"))
    calibration_error = measures.calibration_error
    yield _at_most("calibration error", calibration_error, *threshold("max_calibration_error"))
    yield _at_most("latency p99 in ms", cost.latency_p99_ms, *threshold("max_latency_p99_ms"))
    yield _at_most("memory in MiB", cost.memory_mib, *threshold("max_memory_mib"))
    yield _at_most("size in MiB", cost.size_mib, *threshold("max_size_mib"))
    if golden is not None:
        yield _at_most("wrong golden rows", len(golden.wrong), 0)
    if comparison is not None:
        baseline = comparison.baseline
        drop = -comparison.difference
        yield _at_most(f"accuracy drop from {baseline}", drop, *threshold("max_accuracy_drop"))
        # Below zero, the version is worse than chance explains on these rows.
        name = f"upper end of the accuracy gain on {baseline}"
        yield _at_least(name, comparison.high, 0)


def _at_least(name: str, value: float, bound: float, setting: str = "") -> ThresholdCheck:
    passed = value >= bound
    return ThresholdCheck(
        name=name, value=value, bound=bound, at_least=True, passed=passed, setting=setting
    )


def _at_most(name: str, value: float, bound: float, setting: str = "") -> ThresholdCheck:
    passed = value <= bound
    return ThresholdCheck(
        name=name, value=value, bound=bound, at_least=False, passed=passed, setting=setting
    )


def most_frequent_mistakes(
    measures: ClassificationMeasures, count: int
) -> Sequence[tuple[str, str, int]]:
    """Return the most frequent confusions: the correct label, the predicted one, and the rows."""
    labels = [*measures.per_class]
    mistakes = [
        (labels[correct], labels[predicted], rows)
        for correct, counts in enumerate(measures.confusion)
        for predicted, rows in enumerate(counts)
        if rows and correct != predicted
    ]
    return sorted(mistakes, key=lambda mistake: -mistake[2])[:count]
