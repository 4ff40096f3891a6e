"""`kaiten doctor`: would it start here, by which engines, and if not, why not."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer
from pydantic_core import to_json
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from kaiten.files import ENOUGH_DESCRIPTORS
from server.diagnosis import InForce, Machine, Report, Served, examine

_GIB = 1 << 30
_HOLDERS = {
    "worker": "worker: each worker holds the models",
    "device": "device: one process for each device holds the models",
}


def doctor(
    *, as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False
) -> None:
    """Say what a start here would find and choose, and what would stop it; exit 1 if anything.

    Example: KAITEN_RUNNERS__DEVICE=cuda kaiten doctor
    """
    report = examine()
    if as_json:
        content = {"ok": not report.problems, **asdict(report)}
        typer.echo(to_json(content).decode())
    else:
        _print(report)
    if report.problems:
        raise typer.Exit(1)


def _print(report: Report) -> None:
    """Print a section for each part, and the problems last, where they are seen."""
    console = Console(highlight=False)
    sections = {
        "devices": _device_rows(report.machine),
        "engines": _version_rows(report.engines),
        "versions": _version_rows(report.versions),
        "settings": _setting_rows(report.in_force),
        "models": _model_rows(report.models),
    }
    for title, rows in sections.items():
        table = Table.grid(Column(min_width=12, no_wrap=True), Column(), padding=(0, 2))
        for name, value in rows:
            table.add_row(f"  {escape(name)}", escape(value))
        console.print(f"[bold]{title}[/bold]", table, sep="\n")
    if not report.problems:
        console.print("\n[green]All of it would start.[/green]")
        return
    console.print("\n[red]It would not start:[/red]")
    for problem in report.problems:
        # One line each, however long, so that it can be searched for and copied.
        console.print(f"  {escape(problem.field)}: {escape(problem.reason)}", soft_wrap=True)


def _device_rows(machine: Machine) -> Iterator[tuple[str, str]]:
    limit = "no cgroup quota" if machine.quota is None else f"cgroup quota {machine.quota:g}"
    yield "cpu", machine.cpu or "unknown"
    yield "cores", f"{machine.cores} to use (affinity {machine.affinity}, {limit})"
    available = f"{machine.available_bytes / _GIB:.1f} available"
    yield "memory", f"{machine.memory_bytes / _GIB:.1f} GiB in the machine, {available}"
    few = machine.descriptors < ENOUGH_DESCRIPTORS
    remedy = f"mind: few; raise it to {ENOUGH_DESCRIPTORS} (ulimit -n, LimitNOFILE=)"
    yield "descriptors", f"{machine.descriptors} a process{f'; {remedy}' if few else ''}"
    for index, device in enumerate(machine.cuda):
        yield f"cuda:{index}", f"{device.name}, {device.memory_bytes / _GIB:.1f} GiB"
    if not machine.cuda:
        yield "cuda", "torch sees none"


def _version_rows(versions: dict[str, str | None]) -> Iterator[tuple[str, str]]:
    for package, found in versions.items():
        yield package, found or "not installed"


def _setting_rows(in_force: InForce | None) -> Iterator[tuple[str, str]]:
    if in_force is None:
        yield "not usable", "see below"
        return
    yield "file", str(in_force.settings or "none: the values in kaiten/settings/models.py")
    yield "bentoml", in_force.bentoml
    yield "environment", in_force.environment
    yield "home", str(in_force.home)
    yield "secret", in_force.secret or "not usable, see below"
    if in_force.secrets_folder is not None:
        files = ", ".join(in_force.secret_files) or "no secret in it"
        yield "secrets", f"{in_force.secrets_folder}: {files}"
    yield "redis", in_force.redis or "none: each worker counts by itself"
    yield "database", in_force.database or "none: no predictions are kept"
    for issuer, source in in_force.issuers.items():
        yield "issuer", issuer
        yield "", source
    yield "workers", str(in_force.workers)
    yield "process", f"{_HOLDERS[in_force.process]} (threads of each: {in_force.threads})"
    if in_force.placement:
        placed = (f"worker {index} on {name}" for index, name in enumerate(in_force.placement, 1))
        yield "placement", ", ".join(placed)


def _model_rows(models: list[Served]) -> Iterator[tuple[str, str]]:
    if not models:
        yield "not looked at", "mend the settings first"
    for model in models:
        if model.choice is None:
            yield model.tag, "would not start, see below"
        else:
            choice = model.choice
            yield model.tag, f"{choice.engine} on {choice.device}, lanes: {model.lanes}"
            yield "", f"as {choice.reason}"
            for difference in model.differences:
                yield "", f"mind: {difference}"
