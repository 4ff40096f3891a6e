"""`kaiten validate`: measure a version on labelled rows, against the thresholds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from cli.options import (
    JsonOption,
    LabelColumnOption,
    MissingLabelsOption,
    ModelTagArgument,
    TextColumnOption,
    progress_console,
)
from kaiten.installation import missing_extra
from kaiten.settings.environment import disable_openmp_spinning

if TYPE_CHECKING:
    from lifecycle.evaluate.report import ValidationReport


def validate(
    model_tag: ModelTagArgument,
    data: Annotated[
        Path, typer.Option(help="Labelled rows: .jsonl, .csv, .tsv or .parquet; gzip too.")
    ],
    golden: Annotated[
        Path | None, typer.Option(help="Rows that must all be predicted as labelled.")
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="The version to compare with, or none; by default the one in production."
        ),
    ] = None,
    text_column: TextColumnOption = "text",
    label_column: LabelColumnOption = "label",
    slices: Annotated[
        list[str] | None,
        typer.Option("--slice", help="A column to report the accuracy by; repeatable."),
    ] = None,
    *,
    allow_missing_labels: MissingLabelsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a version, write its report into the store, and exit 1 if it does not pass.

    An interrupted validation continues where it stopped.
    Example: kaiten validate support-intent:1.0.0 --data examples/quickstart/data/test.jsonl
    """
    disable_openmp_spinning()
    with show_progress() as progress:
        try:
            # Servers have this command too, but not the packages that measure and plot.
            from server.validation import ValidationRequest, validate_version  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise missing_extra(error, "validate") from None
        request = ValidationRequest(
            model_tag,
            data,
            golden,
            baseline,
            text_column,
            label_column,
            tuple(slices or ()),
            allow_missing_labels=allow_missing_labels,
        )
        report, folder = validate_version(request, progress)
    if as_json:
        typer.echo(report.model_dump_json())
    else:
        print_report(report, folder)
    if not report.passed:
        raise typer.Exit(1)


class _RowCount(MofNCompleteColumn):
    """How many rows are predicted; nothing for the task that has none."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.total else Text()


@contextmanager
def show_progress(task: str = "Validating ...") -> Iterator[Callable[[str, int, int], None]]:
    """Show a spinner, and yield a function that shows how many rows of a version are predicted."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), _RowCount()
    with Progress(*columns, TimeRemainingColumn(), console=progress_console) as progress:
        spinner = progress.add_task(task, total=None)
        bars: dict[tuple[str, int], TaskID] = {}

        def update(model_tag: str, completed: int, rows: int) -> None:
            if (model_tag, rows) not in bars:
                bars[model_tag, rows] = progress.add_task(model_tag, total=rows)
            progress.update(bars[model_tag, rows], completed=completed)

        try:
            yield update
        finally:
            progress.remove_task(spinner)


def print_report(report: "ValidationReport", folder: Path) -> None:
    """Print a summary to standard error, and the path of the HTML page to standard output."""
    measures, comparison = report.measures, report.comparison
    verdict = "[green]passed[/green]" if report.passed else "[red]refused[/red]"
    echo = progress_console.print
    echo(f"{report.tag} {verdict} on {report.data.rows} rows of {escape(report.data.file)}")
    if report.data.labels_were_indices:
        first = next(iter(measures.per_class))
        echo(f"  its labels are indices of the model's labels: 0 stands for {escape(first)}")
    echo(
        f"  accuracy {measures.accuracy:.3f}, macro F1 {measures.macro.f1:.3f}, calibration error "
        f"{measures.calibration_error:.3f}, p99 {report.cost.latency_p99_ms:.1f} ms"
    )
    echo(
        f"  the accuracy estimate without labels is off by {report.estimate_error:.3f}, measured "
        "on windows of these rows"
    )
    if comparison is not None:
        echo(
            f"  compared with {comparison.baseline}: {100 * comparison.difference:+.2f} points "
            f"({100 * comparison.low:+.2f} to {100 * comparison.high:+.2f}), McNemar's p "
            f"{comparison.p_value:.3g}"
        )
    checks = [check for check in report.checks if check.setting.startswith("validation.models.")]
    if checks:
        echo(f"  thresholds set for this model: {', '.join(check.setting for check in checks)}")
    for check in report.checks:
        if not check.passed:
            echo(f"  [red]refused:[/red] {check}")
    typer.echo(folder / "report.html")
