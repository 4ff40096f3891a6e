"""`kaiten drift`: what the archived profiles tell of how answers have changed."""

from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from cli.token import duration

drift = typer.Typer(help="Look at how answers have changed.", no_args_is_help=True)


@drift.callback()
def group() -> None:
    """Look at how answers have changed."""


@drift.command()
def report(
    model: Annotated[
        str, typer.Option(help="Of this model only, as NAME or NAME:VERSION; by default all.")
    ] = "",
    since: Annotated[
        str, typer.Option(help="Windows since then: 12h or 7d ago, or a date or time in UTC.")
    ] = "7d",
    output: Annotated[Path, typer.Option(help="Where to write the page.")] = Path("drift.html"),
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, for scripts, and write no page.")
    ] = False,
) -> None:
    """Merge the archived windows, and write how they differ from the reference as one page.

    Example: kaiten drift report --model support-intent:1.0.0 --since 24h --output drift.html
    """
    # Only here: what reads profiles takes a second to load.
    reporting = import_module("server.drift_report")
    reporting.run(model, _instant(since), None if as_json else output)


def _instant(since: str) -> datetime:
    """Return when 7d ago was, or what a date or a time says."""
    try:
        at = datetime.fromisoformat(since)
    except ValueError:
        return datetime.now(UTC) - duration(since, "--since")
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
