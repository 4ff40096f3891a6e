"""`kaiten doctor`: check whether the service would start here, and with which engines."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer
from pydantic_core import to_json
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from cli.options import JsonOption, progress_console
from kaiten.files import ENOUGH_DESCRIPTORS
from server.diagnosis import (
    BentoDiagnosis,
    Diagnosis,
    EffectiveSettings,
    Machine,
    ModelDiagnosis,
    diagnose,
)

_GIB = 1 << 30
_HOLDERS = {
    "worker": "worker: each worker holds the models",
    "device": "device: one process for each device holds the models",
}


def doctor(
    bento: Annotated[
        str | None,
        typer.Argument(help="The bento to start, by its tag or folder; by default this code."),
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Show what a start here would use, and exit 1 if something would prevent it.

    Example: kaiten doctor kaiten_service:1.0.0-cpu-0f2a9c81d0be
    """
    with progress_console.status("Examining ..."):
        diagnosis = diagnose() if bento is None else _diagnose_bento(bento)
    if as_json:
        content = {"ok": not diagnosis.problems, **asdict(diagnosis)}
        typer.echo(to_json(content).decode())
    else:
        _print(diagnosis)
    if diagnosis.problems:
        raise typer.Exit(1)


def _diagnose_bento(bento: str) -> Diagnosis:
    # Loaded only for a bento: packages of the build, which BentoML requires too.
    from server.bento_diagnosis import diagnose_bento  # noqa: PLC0415

    return diagnose_bento(bento)


def _print(diagnosis: Diagnosis) -> None:
    """Print a section for each part, and the problems last, where they are noticed."""
    console = Console(highlight=False)
    sections = {
        "bento": _bento_rows(diagnosis.bento),
        "devices": _device_rows(diagnosis.machine),
        "engines": _version_rows(diagnosis.engines),
        "versions": _version_rows(diagnosis.versions),
        "settings": _setting_rows(diagnosis.in_force),
        "models": _model_rows(diagnosis.models),
    }
    for title, section in sections.items():
        if rows := list(section):
            table = Table.grid(Column(min_width=12, no_wrap=True), Column(), padding=(0, 2))
            for name, value in rows:
                table.add_row(f"  {escape(name)}", escape(value))
            console.print(f"[bold]{title}[/bold]", table, sep="\n")
    for difference in diagnosis.bento.differences if diagnosis.bento else ():
        _print_line(console, f"note: {difference}")
    if not diagnosis.problems:
        console.print("\n[green]The service would start.[/green]")
        return
    console.print("\n[red]The service would not start:[/red]")
    for problem in diagnosis.problems:
        _print_line(console, f"{problem.field}: {problem.reason}")


def _print_line(console: Console, line: str) -> None:
    """Print one line, however long, so that it can be searched and copied."""
    console.print(f"  {escape(line)}", soft_wrap=True)


def _bento_rows(bento: BentoDiagnosis | None) -> Iterator[tuple[str, str]]:
    if bento is None:
        return
    yield "tag", bento.tag
    yield "folder", str(bento.folder)
    if bento.packages is None:
        yield "packages", "not pinned: kaiten build has not made this bento"
        return
    yield "commit", bento.revision or "unknown"
    yield "packages", f"{bento.packages} pinned"


def _device_rows(machine: Machine) -> Iterator[tuple[str, str]]:
    limit = "no cgroup quota" if machine.quota is None else f"cgroup quota {machine.quota:g}"
    yield "cpu", machine.cpu or "unknown"
    yield "cores", f"{machine.cores} usable (affinity {machine.affinity}, {limit})"
    available = f"{machine.available_bytes / _GIB:.1f} available"
    yield "memory", f"{machine.memory_bytes / _GIB:.1f} GiB in the machine, {available}"
    too_few = machine.descriptors < ENOUGH_DESCRIPTORS
    remedy = f"; too few: raise the limit to {ENOUGH_DESCRIPTORS} (ulimit -n, LimitNOFILE=)"
    yield "descriptors", f"{machine.descriptors} per process{remedy if too_few else ''}"
    for index, device in enumerate(machine.cuda):
        yield f"cuda:{index}", f"{device.name}, {device.memory_bytes / _GIB:.1f} GiB"
    if not machine.cuda:
        yield "cuda", "torch finds no device"


def _version_rows(versions: dict[str, str | None]) -> Iterator[tuple[str, str]]:
    for package, version in versions.items():
        yield package, version or "not installed"


def _setting_rows(settings: EffectiveSettings | None) -> Iterator[tuple[str, str]]:
    if settings is None:
        yield "not usable", "see below"
        return
    yield "file", str(settings.settings or "none: the values in kaiten/settings/models.py")
    yield "bentoml", settings.bentoml
    yield "environment", settings.environment
    yield "home", str(settings.home)
    yield "secret", settings.secret or "not usable, see below"
    if settings.secrets_folder is not None:
        files = ", ".join(settings.secret_files) or "no secret in it"
        yield "secrets", f"{settings.secrets_folder}: {files}"
    yield "redis", settings.redis or "none: each worker counts by itself"
    yield "database", settings.database or "none: no predictions are stored"
    for issuer, source in settings.issuers.items():
        yield "issuer", issuer
        yield "", source
    yield "workers", str(settings.workers)
    yield "process", f"{_HOLDERS[settings.process]} (threads of each: {settings.threads})"
    if settings.placement:
        workers = (f"worker {index} on {name}" for index, name in enumerate(settings.placement, 1))
        yield "placement", ", ".join(workers)


def _model_rows(models: list[ModelDiagnosis]) -> Iterator[tuple[str, str]]:
    if not models:
        yield "not checked", "correct the settings first"
    for model in models:
        if model.choice is None:
            yield model.tag, "would not start, see below"
        else:
            choice = model.choice
            yield model.tag, f"{choice.engine} on {choice.device}, lanes: {model.lanes}"
            yield "", f"as {choice.reason}"
            for difference in model.differences:
                yield "", f"note: {difference}"
