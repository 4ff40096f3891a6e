"""`kaiten containerize`: make a container image of a bento."""

import json
import re
from dataclasses import asdict
from typing import Annotated, Literal

import typer

from cli.options import JsonOption, progress_console
from kaiten.errors import SetupError
from kaiten.settings.environment import environment_for
from kaiten.settings.loader import load_settings
from lifecycle.packaging.image import containerize_bento
from lifecycle.store import ModelStore

_BACKEND_OPTION = re.compile(r"[a-z][a-z-]*=.*")
_IMAGE_TAG = re.compile(r"[a-z0-9]+([._/:-]+[a-z0-9]+)*:[\w][\w.-]{0,127}")


def containerize(
    bento: Annotated[str, typer.Argument(help="The bento's tag, as kaiten build prints it.")],
    backend: Annotated[
        Literal["docker", "podman", "buildah"], typer.Option(help="The program that builds images.")
    ] = "docker",
    tag: Annotated[
        str | None, typer.Option(help="The image's tag; by default the bento's.")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--option", help="key=value for the backend, such as network=host."),
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Make an image of a bento: unprivileged, labelled, with a health check.

    Example: kaiten containerize kaiten_service:1.0.0-cpu-0f2a9c81d0be --tag registry/kaiten:1.0.0
    """
    for option in options or ():
        if not _BACKEND_OPTION.fullmatch(option):
            message = f"--option {option} is not key=value. Write it like network=host."
            raise SetupError(message)
    if tag is not None and not _IMAGE_TAG.fullmatch(tag):
        raise SetupError(f"--tag {tag} is not an image name. Write it as [REGISTRY/]NAME:TAG.")
    # BuildKit keeps downloads between builds and out of the image.
    environment = environment_for({"DOCKER_BUILDKIT": "1"})
    store = ModelStore(load_settings().signatures)
    with progress_console.status("Making the image ..."):
        image = containerize_bento(bento, store, backend, tag, options or (), environment)
    if as_json:
        typer.echo(json.dumps(asdict(image)))
        return
    size = f", {image.size / 1e6:,.0f} MB" if image.size is not None else ""
    typer.echo(f"Made {image.tag}{size}: {image.id}")
