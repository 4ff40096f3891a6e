"""`kaiten register`: add a version of a model to the model store."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.options import JsonOption, progress_console
from kaiten.errors import ModelRejected
from kaiten.settings.environment import disable_openmp_spinning
from lifecycle.provenance import read_provenance
from lifecycle.store import StoredModel
from server.registration import RegistrationRequest, register_source


def register(
    source: Annotated[
        str,
        typer.Argument(
            help="A Hugging Face model's folder, hf://owner/name@revision or models:/name/version."
        ),
    ],
    name: Annotated[str, typer.Option(help="The model's name: a-z, 0-9, '-', '_', '.'.")],
    task: Annotated[str, typer.Option(help="The model's task, such as text-classification.")],
    version: Annotated[
        str | None, typer.Option(help="The SemVer version; a version never changes.")
    ] = None,
    bump: Annotated[
        Literal["auto"] | None,
        typer.Option(help="auto chooses the lowest version that the SemVer policy allows."),
    ] = None,
    parent: Annotated[
        str | None, typer.Option(help="The version it follows; by default the one in production.")
    ] = None,
    metadata: Annotated[
        Path | None,
        typer.Option(help="YAML with trained_at, metrics, git_commit, licence and limits."),
    ] = None,
    training_data: Annotated[
        Path | None, typer.Option(help="The training data, whose digest the card records.")
    ] = None,
    reference_data: Annotated[
        Path | None, typer.Option(help="The reference data, whose digest the card records.")
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(help="The longest input to serve, in tokens; by default the model's maximum."),
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Check a model and add it to the model store.

    Example: kaiten register ./my-model --name my-model --version 1.0.0 --task text-classification
    """
    if (version is None) == (bump is None):
        raise ModelRejected("version", "is not given", "Pass --version 1.2.3 or --bump auto.")
    disable_openmp_spinning()
    data_files = {"training_data": training_data, "reference_data": reference_data}
    provenance = read_provenance(
        metadata, {field: file for field, file in data_files.items() if file}, parent
    )
    with progress_console.status("Registering ..."):
        model = register_source(
            RegistrationRequest(source, name, version, task, provenance, max_length),
            progress=lambda line: progress_console.print(line, markup=False),
        )
    print_model(model, as_json=as_json)


def print_model(model: StoredModel, *, as_json: bool) -> None:
    """Print a version that was registered, and how it is served."""
    card = model.card
    if as_json:
        typer.echo(card.model_dump_json())
        return
    typer.echo(f"Registered {card.tag} in {model.folder}")
    if card.engine:
        typer.echo(f"On a CPU it is served by {card.engine.name}: {card.engine.reason}.")
    for note in card.notes:
        typer.echo(note)
