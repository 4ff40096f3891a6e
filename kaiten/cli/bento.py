"""`kaiten build` and `kaiten containerize`: from versions of models to a bento, and to an image."""

import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import typer
from rich.console import Console

from kaiten.errors import SetupError
from kaiten.settings import ROOT, environment_for, environment_for_build, load_settings
from lifecycle.store import ModelStore

console = Console(stderr=True, highlight=False, soft_wrap=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def build(
    model: Annotated[
        list[str] | None,
        typer.Option(help="name:version, or name for what is in production; may be repeated."),
    ] = None,
    variant: Annotated[Literal["cpu", "cuda"], typer.Option(help="What it is to run on.")] = "cpu",
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
    """Build a bento, kaiten_service:VERSION, with the models named, or serving.models.

    A model needs a passing report, and a stage; the version follows from all that goes in.
    Example: kaiten build --model support-intent:1.0.0 --variant cuda
    """
    # Servers, which have this command too, lack what builds.
    try:
        from lifecycle.bento.build import Order  # noqa: PLC0415
        from lifecycle.bento.build import build as build_bento  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise SetupError(f"{error.name} is missing; install kaiten[build] to build.") from None
    settings = load_settings()
    # PostgreSQL is what several hosts share.
    extras = ("postgres", *(extra or ()))
    models = tuple(model or settings.serving.models)
    torch = settings.runners.engine == "torch"
    order = Order(ROOT, models, variant, extras, torch, torch_source or None, base_image or None)
    with TemporaryDirectory(prefix="kaiten-") as home, console.status("Building ..."):
        store = ModelStore(settings.signatures)
        built = build_bento(order, store, environment_for_build(Path(home)))
    if as_json:
        told = {"bento": built.bento, "folder": str(built.folder), "digest": built.digest}
        typer.echo(json.dumps(told | built.labels))
        return
    typer.echo(
        f"{built.bento} {'is there already' if built.existed else 'is built'}.\n"
        f"models  {built.labels['models']}\ndigest  {built.digest}\nfolder  {built.folder}\n"
        f"Next: kaiten containerize {built.bento}"
    )


def containerize(
    bento: Annotated[str, typer.Argument(help="The bento, as kaiten build names it.")],
    backend: Annotated[
        Literal["docker", "podman", "buildah"], typer.Option(help="What makes the image.")
    ] = "docker",
    tag: Annotated[
        str | None, typer.Option(help="The image's tag; by default the bento's.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="key=value for the backend's build, such as network=host; repeatable."),
    ] = None,
    *,
    as_json: Json = False,
) -> None:
    """Make an image of a bento: unprivileged, labelled, with a health check.

    Example: kaiten containerize kaiten_service:1.0.0-cpu-0f2a9c81d0be --tag registry/kaiten:1.0.0
    """
    from lifecycle.bento.image import containerize as make_image  # noqa: PLC0415

    # With it, what is downloaded is kept between builds, and stays out of the image.
    environment = environment_for({"DOCKER_BUILDKIT": "1"})
    store = ModelStore(load_settings().signatures)
    with console.status("Making the image ..."):
        image = make_image(bento, store, backend, tag, option or (), environment)
    if as_json:
        typer.echo(json.dumps(asdict(image)))
        return
    size = f", {image.size / 1e6:,.0f} MB" if image.size is not None else ""
    typer.echo(f"{image.tag} is made{size}: {image.id}")
