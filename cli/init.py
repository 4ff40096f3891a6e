"""`kaiten init`: start a project with a model of yours."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import (
    LabelColumnOption,
    MissingLabelsOption,
    TextColumnOption,
    progress_console,
)
from cli.register import print_model
from cli.validate import print_report, show_progress
from kaiten.errors import SetupError
from kaiten.installation import missing_extra
from kaiten.settings.environment import disable_openmp_spinning
from lifecycle.evaluate.rows import Columns
from lifecycle.registration import FIRST_VERSION

if TYPE_CHECKING:
    from server.project import ProjectRequest


def init(
    folder: Annotated[
        Path | None, typer.Argument(help="The project's folder; by default the model's name.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A Hugging Face model's folder, hf://owner/name@revision, models:/name/version, "
            "or a registered name:version."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Labelled rows to validate on: .jsonl, .csv, .tsv or .parquet."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's name: a-z, 0-9, '-', '_', '.'.")
    ] = None,
    version: Annotated[str, typer.Option(help="The SemVer version.")] = FIRST_VERSION,
    text_column: TextColumnOption = "text",
    label_column: LabelColumnOption = "label",
    *,
    allow_missing_labels: MissingLabelsOption = False,
) -> None:
    """Register and validate a model, and write a folder with settings, a client and Compose.

    In a terminal, it asks for missing options. It overwrites no file.
    Example: kaiten init --model ./my-model --data test.jsonl --name my-model
    """
    disable_openmp_spinning()
    try:
        # As in validate.
        from server.project import (  # noqa: PLC0415
            ProjectProgress,
            ProjectRequest,
            registered_tag,
            start_project,
            suggest_name,
        )
    except ModuleNotFoundError as error:
        raise missing_extra(error, "validate") from None
    if not sys.stdin.isatty():
        is_registered = model is not None and registered_tag(model) is not None
        names = {} if is_registered else {"--name": name}
        _check_passed({"--model": model, "--data": data, **names})
    model = model or _ask("Model (a folder, hf://owner/name, or a registered name:version)")
    data = data or Path(_ask("Labelled rows (.jsonl, .csv or .parquet)")).expanduser()
    if registered_tag(model):
        name = name or model.partition(":")[0]
    name = name or _ask("Name of the model", suggest_name(model))
    request = ProjectRequest(
        folder or Path(name),
        str(Path(model).expanduser()) if model.startswith("~") else model,
        data,
        name,
        version,
        Columns(text_column, label_column),
        allow_missing_labels,
    )
    with show_progress("Starting the project ...") as rows:
        report, report_folder = start_project(
            request,
            ProjectProgress(
                step=lambda line: progress_console.print(line, markup=False),
                registered=lambda registered: print_model(registered, as_json=False),
                rows=rows,
            ),
        )
    print_report(report, report_folder)
    _print_next_steps(request, passed=report.passed)
    if not report.passed:
        raise typer.Exit(1)


def _check_passed(options: dict[str, object]) -> None:
    """Raise SetupError for options that are missing and cannot be asked for."""
    missing = [option for option, value in options.items() if value is None]
    if missing:
        *others, last = missing
        subject = f"{', '.join(others)} and {last} are" if others else f"{last} is"
        raise SetupError(
            f"{subject} missing. Pass all options, as standard input is not a "
            "terminal to ask in. Example: kaiten init --model ./my-model --data test.jsonl "
            "--name my-model"
        )


def _ask(question: str, default: str = "") -> str:
    # Standard output carries the result.
    answer: str = typer.prompt(question, default=default or None, err=True)
    return answer.strip()


def _print_next_steps(request: "ProjectRequest", *, passed: bool) -> None:
    folder = request.folder
    typer.echo(f"\nWrote the project {folder}. Next:\n  cd {shlex.quote(str(folder))}")
    if not passed:
        options = " ".join(filter(None, ["--data FILE", request.validation_options]))
        typer.echo(f"  kaiten validate {request.model_tag} {options}    # until it passes")
    typer.echo(
        "  kaiten serve\n"
        "In a second terminal:\n"
        "  TOKEN=$(kaiten token create --subject me --scope predict) python3 client.py\n"
        "README.md in the folder has the steps to a release."
    )
