"""`kaiten register` and `kaiten models`: what there is to serve."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from lifecycle.registration import register as register_model
from lifecycle.store import ModelStore
from runners.tasks import find_inspection

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def register(
    folder: Annotated[Path, typer.Argument(help="A local Hugging Face model folder.")],
    name: Annotated[str, typer.Option(help="The model's name: a-z, 0-9, '-', '_', '.'.")],
    version: Annotated[str, typer.Option(help="Its SemVer version; a version never changes.")],
    task: Annotated[str, typer.Option(help="Its task, such as text-classification.")],
    *,
    as_json: Json = False,
) -> None:
    """Check a model folder and add it to the model store.

    Example: kaiten register ./my-model --name my-model --version 1.0.0 --task text-classification
    """
    inspect = find_inspection(task).inspect
    stored = register_model(folder, f"{name}:{version}", task, store=ModelStore(), inspect=inspect)
    if as_json:
        typer.echo(stored.card.model_dump_json())
    else:
        typer.echo(f"Registered {stored.card.tag} in {stored.folder}")
        if engine := stored.card.engine:
            typer.echo(f"On a CPU it is served by {engine.name}: {engine.reason}.")


def list_models(
    tag: Annotated[
        str | None, typer.Argument(help="name:version, to check and show this one only.")
    ] = None,
    *,
    as_json: Json = False,
) -> None:
    """List the registered models, or check that one is there and unchanged.

    Example: kaiten models support-intent:1.0.0
    """
    store = ModelStore()
    cards = [model.card for model in ([store.get(tag)] if tag else store)]
    if as_json:
        typer.echo(json.dumps([card.model_dump(mode="json") for card in cards]))
        return
    whole = [Column(name, no_wrap=True) for name in ("model", "task")]
    table = Table(*whole, "labels", "tokens", "registered", box=SIMPLE, pad_edge=False)
    for card in cards:
        registered = f"{card.registered_at:%Y-%m-%d}"
        table.add_row(card.tag, card.task, str(len(card.labels)), str(card.max_length), registered)
    Console().print(table if cards else "No models yet. Make one: make quickstart")
