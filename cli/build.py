"""`kaiten build`: build a bento from code, settings and versions of models."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import typer

from cli.options import JsonOption, progress_console
from kaiten.installation import missing_extra, require_checkout
from kaiten.settings.environment import ROOT, environment_for_build
from kaiten.settings.loader import load_settings
from lifecycle.store import ModelStore


def build(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="name:version, name@staging, or name for the version in production; repeatable."
        ),
    ] = None,
    variant: Annotated[Literal["cpu", "cuda"], typer.Option(help="The hardware to run on.")] = (
        "cpu"
    ),
    torch_source: Annotated[
        str | None,
        typer.Option(
            envvar="TORCH_SOURCE", help="Where to find torch: an index, or a folder or page."
        ),
    ] = None,
    base_image: Annotated[
        str | None,
        typer.Option(envvar="BASE_IMAGE", help="Instead of Python's image; pin it by digest."),
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Build the bento kaiten_service:VERSION with these models, or with serving.models.

    A model needs a passing report and a stage. The version is derived from the contents.
    Example: kaiten build --model support-intent:1.0.0 --variant cuda
    """
    require_checkout("build a bento")
    try:
        # Servers have this command too, but not the packages that build.
        from lifecycle.packaging.build import BuildRequest, build_bento  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise missing_extra(error, "build") from None
    settings = load_settings()
    request = BuildRequest(
        project=ROOT,
        models=tuple(model or settings.serving.models),
        variant=variant,
        torch=settings.runners.engine == "torch",
        torch_source=torch_source or None,
        base_image=base_image or None,
    )
    with TemporaryDirectory(prefix="kaiten-") as home, progress_console.status("Building ..."):
        store = ModelStore(settings.signatures)
        bento = build_bento(request, store, environment_for_build(Path(home)))
    if as_json:
        summary = {"bento": bento.tag, "folder": str(bento.folder), "digest": bento.digest}
        typer.echo(json.dumps(summary | bento.labels))
        return
    typer.echo(
        f"{bento.tag} {'exists already' if bento.existed else 'is built'}.\n"
        f"models  {bento.labels['models']}\ndigest  {bento.digest}\nfolder  {bento.folder}\n"
        f"Next: kaiten containerize {bento.tag}"
    )
