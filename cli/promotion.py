"""`kaiten promote`, `rollback`, `history` and `diff`: which version serves, and how that came."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kaiten import model_tags
from kaiten.errors import SetupError
from kaiten.settings.loader import load_settings
from kaiten.settings.models import VersioningSettings
from lifecycle.audit_log import Entry, Stage
from lifecycle.card import ModelCard
from lifecycle.operators import operator
from lifecycle.promotion import Promotions, Request
from lifecycle.release_evidence import Repository, gather
from lifecycle.store import ModelStore
from monitors.logging.setup import keep_acts

_SHOWN = 12
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Reason = Annotated[str, typer.Option(help="Why; it is kept for good.")]


def promote(
    tag: Annotated[str, typer.Argument(help="The version, as name:version.")],
    to: Annotated[Stage, typer.Option(help="The stage that it is to serve in.")],
    reason: Reason,
    repository: Annotated[
        Path, typer.Option(help="The model's git repository, where evidence is looked for.")
    ] = Path(),
    tests: Annotated[
        Path | None, typer.Option(help="JUnit XML of the tests, as evidence that they pass.")
    ] = None,
    *,
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether it may, and change nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Let a version serve in a stage; only one with a passing report, and staging comes first.

    Example: kaiten promote support-intent:1.0.0 --to staging --reason "first release"
    """
    rules, store = _open()
    evidence = gather(store.get(tag).card, Repository(repository, tests), rules.release_process)
    request = Request(to, operator(), _given(reason), evidence)
    if check:
        Promotions(store, rules).check(tag, request)
        typer.echo(f"{tag} may serve in {to.value}.")
        return
    _tell(Promotions(store, rules).promote(tag, request), model_tags.split(tag)[0], as_json=as_json)


def rollback(
    name: Annotated[str, typer.Argument(help="The model's name.")],
    reason: Reason,
    *,
    as_json: Json = False,
) -> None:
    """Let the last good version serve in production again.

    Example: kaiten rollback support-intent --reason "wrong answers on refunds"
    """
    rules, store = _open()
    entry = Promotions(store, rules).rollback(name, operator(), _given(reason))
    _tell(entry, name, as_json=as_json)


def history(
    name: Annotated[str, typer.Argument(help="The model's name.")], *, as_json: Json = False
) -> None:
    """Show what happened to a model's versions, and check that nobody has changed it.

    Example: kaiten history support-intent
    """
    entries = ModelStore().history(name).entries()
    if as_json:
        typer.echo(json.dumps([entry.model_dump(mode="json") for entry in entries]))
        return
    if not entries:
        raise SetupError(f"Nothing is known of {name}. kaiten models lists what there is.")
    table = Table(
        "#", "when (UTC)", "what", "version", "who", "why", "seal", box=SIMPLE, pad_edge=False
    )
    for entry in entries:
        when, what = f"{entry.at:%Y-%m-%d %H:%M:%S}", entry.action.value
        if entry.stage is not None:
            what += f" to {entry.stage.value}"
        if entry.passed is not None:
            what += ", passed" if entry.passed else ", refused"
        told = (entry.version, escape(entry.who), escape(entry.reason), entry.digest[:_SHOWN])
        table.add_row(str(entry.number), when, what, *told)
    Console().print(table)


def diff(
    one: Annotated[str, typer.Argument(help="A version, as name:version.")],
    other: Annotated[str, typer.Argument(help="Another.")],
    *,
    as_json: Json = False,
) -> None:
    """Show what two versions' cards say differently.

    Example: kaiten diff support-intent:1.0.0 support-intent:1.1.0
    """
    _, store = _open()
    found = differences(store.get(one).card, store.get(other).card)
    if as_json:
        typer.echo(json.dumps({key: [*pair] for key, pair in found.items()}))
        return
    table = Table("", one, other, box=SIMPLE, pad_edge=False)
    for key, (before, after) in found.items():
        table.add_row(*map(escape, (key, before or "-", after or "-")))
    Console().print(table)


def differences(one: ModelCard, other: ModelCard) -> dict[str, tuple[str | None, str | None]]:
    """Return each field of two cards that differs, by its dotted path, as text."""
    both = [_flat("", card.model_dump(mode="json")) for card in (one, other)]
    keys = dict.fromkeys([*both[0], *both[1]])
    pairs = {key: (both[0].get(key), both[1].get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _flat(path: str, value: object) -> dict[str, str]:
    if isinstance(value, dict):
        found: dict[str, str] = {}
        for key, each in value.items():
            found |= _flat(f"{path}.{key}" if path else str(key), each)
        return found
    return {} if value is None else {path: value if isinstance(value, str) else json.dumps(value)}


def _open() -> tuple[VersioningSettings, ModelStore]:
    settings = load_settings()
    keep_acts(settings.logging.folder or settings.home)
    return settings.versioning, ModelStore(settings.signatures)


def _given(reason: str) -> str:
    if not reason.strip():
        raise SetupError("--reason is empty: say why, for whoever looks at the history.")
    return reason.strip()


def _tell(entry: Entry, name: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(entry.model_dump_json())
        return
    stage = entry.stage.value if entry.stage else ""
    typer.echo(f"{name}:{entry.version} serves in {stage} from the next start on.")
