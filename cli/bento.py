"""`kaiten build` and `kaiten containerize`: from versions of models to a bento, and to an image."""

import json
import re
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from kaiten.errors import SetupError
from kaiten.settings.environment import ROOT, environment_for, environment_for_build
from kaiten.settings.loader import load_settings
from lifecycle.store import ModelStore

_OPTION = re.compile(r"[a-z][a-z-]*=.*")
_IMAGE = re.compile(r"[a-z0-9]+([._/:-]+[a-z0-9]+)*:[\w][\w.-]{0,127}")
console = Console(stderr=True, highlight=False, soft_wrap=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def build(
    model: Annotated[
        list[str] | None,
        typer.Option(help="name:version, or name for what is in production; may be repeated."),
    ] = None,
    variant: Annotated[Literal["cpu", "cuda"], typer.Option(help="What it is to run on.")] = "cpu",
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
    building, settings = _import("lifecycle.packaging.build"), load_settings()
    order = building.Order(
        project=ROOT,
        models=tuple(model or settings.serving.models),
        variant=variant,
        torch=settings.runners.engine == "torch",
        torch_source=torch_source or None,
        base_image=base_image or None,
    )
    with TemporaryDirectory(prefix="kaiten-") as home, console.status("Building ..."):
        store = ModelStore(settings.signatures)
        built = building.build(order, store, environment_for_build(Path(home)))
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
    for each in option or ():
        if not _OPTION.fullmatch(each):
            raise SetupError(f"--option {each}: write it as key=value, such as network=host.")
    if tag is not None and not _IMAGE.fullmatch(tag):
        raise SetupError(f"--tag {tag}: is no image's name; write [REGISTRY/]NAME:TAG.")
    imaging = _import("lifecycle.packaging.image")
    # With it, what is downloaded is kept between builds, and stays out of the image.
    environment = environment_for({"DOCKER_BUILDKIT": "1"})
    store = ModelStore(load_settings().signatures)
    with console.status("Making the image ..."):
        image = imaging.containerize(bento, store, backend, tag, option or (), environment)
    if as_json:
        typer.echo(json.dumps(asdict(image)))
        return
    size = f", {image.size / 1e6:,.0f} MB" if image.size is not None else ""
    typer.echo(f"{image.tag} is made{size}: {image.id}")


def _import(name: str) -> Any:  # noqa: ANN401  a module
    # Servers, which have these commands too, lack what builds.
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise SetupError(f"{error.name} is missing; install kaiten[build] to build.") from None
