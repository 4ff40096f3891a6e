"""`kaiten model`: list, show, compare and sign versions, and read their audit log."""

import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from cli.options import JsonOption, ModelTagArgument
from kaiten.errors import Detail, InvalidSettings, SetupError
from kaiten.settings.loader import load_settings
from lifecycle.audit_log import AuditLogEntry
from lifecycle.card import ModelCard, card_differences
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
    _print([stored.card for stored in ModelStore(load_settings().signatures)], as_json=as_json)


@model.command()
def show(model_tag: ModelTagArgument, *, as_json: JsonOption = False) -> None:
    """Show one version, after a check that its files are unchanged.

    Example: kaiten model show support-intent:1.0.0
    """
    _print([ModelStore(load_settings().signatures).get(model_tag).card], as_json=as_json)


def _print(cards: Sequence[ModelCard], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([card.model_dump(mode="json") for card in cards]))
        return
    unbroken = [Column(name, no_wrap=True) for name in ("model", "task")]
    table = Table(*unbroken, "labels", "tokens", "registered", box=SIMPLE, pad_edge=False)
    for card in cards:
        registered = f"{card.registered_at:%Y-%m-%d}"
        table.add_row(card.tag, card.task, str(len(card.labels)), str(card.max_length), registered)
    Console().print(table if cards else "No models yet. Create one with `make quickstart`.")


@model.command()
def diff(
    left: Annotated[str, typer.Argument(help="A version, as name:version.")],
    right: Annotated[str, typer.Argument(help="Another version.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Show the fields in which the cards of two versions differ.

    Example: kaiten model diff support-intent:1.0.0 support-intent:1.1.0
    """
    store = ModelStore(load_settings().signatures)
    differences = card_differences(store.get(left).card, store.get(right).card)
    if as_json:
        typer.echo(json.dumps(differences))
        return
    table = Table("", left, right, box=SIMPLE, pad_edge=False)
    for field, values in differences.items():
        table.add_row(escape(field), *(escape(value or "-") for value in values))
    Console().print(table)


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
    Console().print(table)


def _audit_log_row(entry: AuditLogEntry) -> tuple[str, ...]:
    action = entry.action.value
    if entry.stage is not None:
        action += f" to {entry.stage.value}"
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
    ModelStore(signatures).sign(model_tag, force=force)
    typer.echo(f"Signed {model_tag}.")
