"""The `kaiten` command."""

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from cli import (
    api_key,
    build,
    config,
    containerize,
    device,
    doctor,
    drift,
    init,
    model,
    promote,
    pseudonym,
    register,
    revoke,
    rollback,
    serve,
    smoke,
    token,
    validate,
)
from kaiten import __version__
from kaiten.errors import SetupError
from kaiten.settings.environment import bento_models
from lifecycle.store import ModelStore
from monitors.logging.setup import configure_command_logging

_NAME = "kaiten"
# The panels of `kaiten --help`.
_SERVE, _MODELS, _IMAGES = "Serve", "Models and versions", "Bentos and images"
_CREDENTIALS, _MONITORING = "Credentials", "Monitoring"

app = typer.Typer(
    help="Run fine-tuned transformers in production.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command(rich_help_panel=_SERVE)(serve.serve)
app.add_typer(config.config, name="config", rich_help_panel=_SERVE)
app.command(rich_help_panel=_SERVE)(doctor.doctor)
app.command(rich_help_panel=_SERVE)(smoke.smoke)
app.command(rich_help_panel=_MODELS)(init.init)
app.command(rich_help_panel=_MODELS)(register.register)
app.command(rich_help_panel=_MODELS)(validate.validate)
app.command(rich_help_panel=_MODELS)(promote.promote)
app.command(rich_help_panel=_MODELS)(rollback.rollback)
app.add_typer(model.model, name="model", rich_help_panel=_MODELS)
app.command(rich_help_panel=_IMAGES)(build.build)
app.command(rich_help_panel=_IMAGES)(containerize.containerize)
app.add_typer(token.token, name="token", rich_help_panel=_CREDENTIALS)
app.add_typer(api_key.api_key, name="api-key", rich_help_panel=_CREDENTIALS)
app.command(rich_help_panel=_CREDENTIALS)(revoke.revoke)
app.add_typer(drift.drift, name="drift", rich_help_panel=_MONITORING)
app.command(rich_help_panel=_MONITORING)(pseudonym.pseudonym)
# Only the server calls it.
app.command(hidden=True)(device.device)


def _print_version(*, requested: bool) -> None:
    if requested:
        typer.echo(f"{_NAME} {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Accept the options that come before a command."""


def main() -> None:
    """Run a command; an error that the operator can correct is printed without a traceback."""
    configure_command_logging()
    try:
        if models := bento_models():
            ModelStore.at(models)
        # In a bento, the program is Python.
        app(prog_name=_NAME)
    except SetupError as error:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(f"[red]error:[/red] {escape(error.message)}")
        sys.exit(1)
