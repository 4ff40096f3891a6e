"""`kaiten build`: a bento of a checkout and versions of models."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console

from kaiten.settings import ROOT, environment_for_build, load_settings
from lifecycle.bento.build import Order
from lifecycle.bento.build import build as build_bento
from lifecycle.bento.packages import Variant
from lifecycle.store import ModelStore

console = Console(stderr=True, highlight=False, soft_wrap=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def build(
    model: Annotated[
        list[str] | None,
        typer.Option(help="name:version, or name for what is in production; may be repeated."),
    ] = None,
    variant: Annotated[Variant, typer.Option(help="What it is to run on.")] = "cpu",
    extra: Annotated[
        list[str] | None, typer.Option(help="An extra of pyproject.toml, such as s3; repeatable.")
    ] = None,
    torch_source: Annotated[
        str | None,
        typer.Option(
            envvar="TORCH_SOURCE", help="Where torch is: an index, or a folder or page of wheels."
        ),
    ] = None,
    base_image: Annotated[
        str | None,
        typer.Option(envvar="BASE_IMAGE", help="In place of Python's own; pin it by its digest."),
    ] = None,
    *,
    as_json: Json = False,
) -> None:
    """Build a bento, kaiten_service:VERSION, with serving.models or the models named.

    The version follows from what is in it: the same content is built once.

    Example: kaiten build --model support-intent:1.0.0 --variant cuda
    """
    settings = load_settings()
    models = tuple(model or settings.serving.models)
    # PostgreSQL is what several hosts share.
    extras = ("postgres", *(extra or ()))
    order = Order(ROOT, models, variant, extras, torch_source, base_image)
    with TemporaryDirectory(prefix="kaiten-") as home, console.status("Building ..."):
        store = ModelStore(settings.signatures)
        built = build_bento(order, store, environment_for_build(Path(home)))
    if as_json:
        typer.echo(json.dumps({
            "bento": built.bento, "folder": str(built.folder), "digest": f"sha256:{built.digest}",
            "existed": built.existed, **built.labels,
        }))  # fmt: skip
        return
    typer.echo(f"{built.bento} {'is there already' if built.existed else 'is built'}.")
    typer.echo(f"models    {built.labels['models']}\ndigest    sha256:{built.digest}")
    typer.echo(f"folder    {built.folder}\nnext      kaiten containerize {built.bento}")
