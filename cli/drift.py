"""`kaiten drift`: report how predictions have changed, from the archived profiles."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from cli.options import parse_duration, progress_console
from kaiten import model_tags

# A hundred years: no archive goes back further.
_MAX_AGE = timedelta(days=36_500)
drift = typer.Typer(help="Report how predictions have changed.", no_args_is_help=True)


@drift.callback()
def group() -> None:
    """Report how predictions have changed."""


@drift.command()
def report(
    model: Annotated[
        str, typer.Option(help="Only this model, as NAME or NAME:VERSION; by default all models.")
    ] = "",
    since: Annotated[
        str, typer.Option(help="Only windows since then: 12h or 7d ago, or a date or time in UTC.")
    ] = "7d",
    output: Annotated[Path, typer.Option(help="The HTML page to write.")] = Path("drift.html"),
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON for scripts, and write no page.")
    ] = False,
) -> None:
    """Compare the archived windows with the baseline, and write the result as one HTML page.

    Example: kaiten drift report --model support-intent:1.0.0 --since 24h --output drift.html
    """
    name, instant = _check_model(model), _parse_instant(since)
    with progress_console.status("Reading the profiles ..."):
        # whylogs takes a second to load, which other commands should not pay.
        from server.drift_report import (  # noqa: PLC0415
            build_drift_report,
            load_page_renderer,
            summary_lines,
            write_page,
        )

        render = None if as_json else load_page_renderer()
        drift_report = build_drift_report(name, instant)
        if render is not None:
            write_page(output, render(drift_report))
    if as_json:
        typer.echo(drift_report.model_dump_json())
        return
    for line in summary_lines(drift_report):
        typer.echo(line)
    typer.echo(f"Wrote {output}.")


def _check_model(model: str) -> str:
    name, colon, version = model.partition(":")
    if model and not (model_tags.is_name(name) and (not colon or model_tags.is_name(version))):
        message = f"{model!r} is not NAME or NAME:VERSION"
        raise typer.BadParameter(message, param_hint="--model")
    return model


def _parse_instant(since: str) -> datetime:
    """Parse a duration before now, or a date or time."""
    try:
        instant = datetime.fromisoformat(since)
    except ValueError:
        return datetime.now(UTC) - parse_duration(since, "--since", _MAX_AGE)
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
