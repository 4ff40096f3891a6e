"""`kaiten model`: list, show, compare and sign versions, and read their audit log."""

import json
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from cli.options import JsonOption, ModelTagArgument, progress_console, table_width
from kaiten.errors import Detail, InvalidSettings, SetupError
from kaiten.settings.loader import load_settings
from lifecycle.audit_log import Action, AuditLogEntry
from lifecycle.overview import VersionOverview, differences, overview_of
from lifecycle.store import ModelStore

_DIGEST_CHARS = 12
model = typer.Typer(
    help="List, show, compare and sign versions, and read their audit log.", no_args_is_help=True
)


@model.command(name="list")
def list_models(*, as_json: JsonOption = False) -> None:
    """List the registered versions.

    Example: kaiten model list
    """
    settings = load_settings()
    store = ModelStore(settings.signatures)
    overviews = [*overview_of([*store], store, settings.serving.models)]
    if as_json:
        typer.echo(json.dumps([overview.as_json() for overview in overviews]))
        return
    names = ("model", "task", "labels", "engine", "stage", "accuracy", "served")
    table = Table(*(Column(name, no_wrap=True) for name in names), box=SIMPLE, pad_edge=False)
    for overview in overviews:
        table.add_row(*_list_row(overview))
    if overviews:
        Console(width=table_width()).print(table)
        typer.echo("served: by the next start with these settings (serving.models).")
    else:
        typer.echo(
            "No models yet. Add yours with `kaiten register`, or make the quickstart model with "
            "`make quickstart` in a checkout."
        )


@model.command()
def show(model_tag: ModelTagArgument, *, as_json: JsonOption = False) -> None:
    """Show one version, after a check that its files are unchanged.

    Example: kaiten model show support-intent:1.0.0
    """
    settings = load_settings()
    store = ModelStore(settings.signatures)
    with progress_console.status("Checking the files ..."):
        (overview,) = overview_of([store.get(model_tag)], store, settings.serving.models)
    if as_json:
        typer.echo(json.dumps(overview.as_json()))
        return
    table = Table("", "", box=None, pad_edge=False, show_header=False)
    for name, value in _show_rows(overview).items():
        table.add_row(name, escape(value))
    Console(width=table_width()).print(table)


def _list_row(overview: VersionOverview) -> tuple[str, ...]:
    card, report = overview.card, overview.report
    return (
        card.tag,
        card.task,
        str(len(card.labels)),
        card.engine.name if card.engine else "-",
        _stages(overview),
        f"{report.measures.accuracy:.3f}" if report else "-",
        "yes" if overview.serves else "no",
    )


def _show_rows(overview: VersionOverview) -> dict[str, str]:
    card = overview.card
    figures = overview.report.figures if overview.report else {"verdict": "not validated"}
    rows = {
        "model": card.tag,
        "task": card.task,
        "labels": ", ".join(card.labels),
        "longest input": f"{card.max_length} tokens",
        "architecture": card.architecture,
        "engine": f"{card.engine.name}: {card.engine.reason}" if card.engine else "-",
        "registered": f"{card.registered_at:%Y-%m-%d %H:%M} UTC",
        "stage": _stages(overview),
        "served": "by the next start with these settings" if overview.serves else "no",
        "source": card.provenance.source or "-",
        "licence": card.provenance.licence or "-",
        "limits": card.provenance.limits or "-",
        "notes": " ".join(card.notes) or "-",
    }
    return rows | {f"validation: {name}": value for name, value in figures.items()}


def _stages(overview: VersionOverview) -> str:
    return ", ".join(stage.value for stage in overview.stages) or "-"


@model.command()
def diff(
    left: Annotated[str, typer.Argument(help="A version, as name:version.")],
    right: Annotated[str, typer.Argument(help="Another version.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Compare two versions: the measures of their last validations, and their cards.

    Example: kaiten model diff support-intent:1.0.0 support-intent:1.1.0
    """
    settings = load_settings()
    store = ModelStore(settings.signatures)
    with progress_console.status("Checking the files ..."):
        models = [store.get(left), store.get(right)]
        rows = differences(*overview_of(models, store, settings.serving.models))
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table("", left, right, box=SIMPLE, pad_edge=False)
    for name, values in rows.items():
        table.add_row(escape(name), *(escape(value or "-") for value in values))
    Console(width=table_width()).print(table)


@model.command(name="audit-log")
def audit_log(
    name: Annotated[str, typer.Argument(help="The model's name.")], *, as_json: JsonOption = False
) -> None:
    """Show when versions were registered, validated, promoted and rolled back, and by which user.

    The command fails if the audit log was tampered with.
    Example: kaiten model audit-log support-intent
    """
    entries = ModelStore().audit_log(name).entries()
    if as_json:
        typer.echo(json.dumps([entry.model_dump(mode="json") for entry in entries]))
        return
    if not entries:
        raise SetupError(f"{name} has no audit log. List the models with `kaiten model list`.")
    columns = ("#", "time (UTC)", "action", "version", "operator", "reason", "digest")
    table = Table(*columns, box=SIMPLE, pad_edge=False)
    for entry in entries:
        table.add_row(*map(escape, _audit_log_row(entry)))
    Console(width=table_width()).print(table)


def _audit_log_row(entry: AuditLogEntry) -> tuple[str, ...]:
    action = entry.action.value
    if entry.stage is not None:
        # The version in the next column is the one that is in the stage from then on.
        rolled_back = entry.action is Action.ROLLED_BACK
        stage = entry.stage.value
        action = f"{stage} rolled back to" if rolled_back else f"{action} to {stage}"
    if entry.passed is not None:
        action += ", passed" if entry.passed else ", refused"
    time, digest = f"{entry.at:%Y-%m-%d %H:%M:%S}", entry.digest[:_DIGEST_CHARS]
    return str(entry.number), time, action, entry.version, entry.who, entry.reason, digest


@model.command()
def sign(
    model_tag: ModelTagArgument,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a signature that is not valid, with a new key.")
    ] = False,
) -> None:
    """Sign a version that was registered here, for example before a key was configured.

    Example: KAITEN_SIGNATURES__PRIVATE_KEY=release.key kaiten model sign support-intent:1.0.0
    """
    signatures = load_settings().signatures
    if signatures.private_key is None:
        reason = "is not set; name the PEM file of an elliptic curve key"
        raise InvalidSettings([Detail("signatures.private_key", reason)], "signatures")
    with progress_console.status("Signing ..."):
        ModelStore(signatures).sign(model_tag, force=force)
    typer.echo(f"Signed {model_tag}.")
