"""`kaiten validate`: measure a version on labelled rows, and say whether it may be promoted."""

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from kaiten.errors import SetupError
from lifecycle.operators import Request


def validate(
    tag: Annotated[str, typer.Argument(help="The version, as name:version.")],
    data: Annotated[
        Path, typer.Option(help="Labelled rows: .jsonl, .csv, .tsv or .parquet; gzip too.")
    ],
    golden: Annotated[
        Path | None, typer.Option(help="Rows that must be answered as they are labelled.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Compare with this version, or none; by default that in production."),
    ] = None,
    text_column: Annotated[str, typer.Option(help="The column with the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="The column with the label.")] = "label",
    slices: Annotated[
        list[str] | None, typer.Option("--slice", help="Accuracy by this column too; repeatable.")
    ] = None,
    *,
    partly: Annotated[bool, typer.Option(help="Let rows lack some of the labels.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Measure a version, write its report into the store, and exit 1 where it does not pass.

    An interrupted validation goes on where it stopped.
    Example: kaiten validate support-intent:1.0.0 --data examples/quickstart/data/test.jsonl
    """
    try:
        validation = import_module("server.validation")
    except ModuleNotFoundError as error:
        remedy = "pip install 'kaiten[validate]'"
        raise SetupError(f"{error.name} is not installed: {remedy}.") from None
    request = Request(
        tag, data, golden, against, text_column, label_column, tuple(slices or ()), partly=partly
    )
    if not validation.run(request, as_json=as_json):
        raise typer.Exit(1)
