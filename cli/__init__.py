"""The `kaiten` command."""

import logging
import sys

import typer
from rich.console import Console
from rich.markup import escape

from cli import (
    bento,
    credentials,
    device,
    doctor,
    drift,
    models,
    promotion,
    serve,
    smoke,
    token,
    validate,
)
from kaiten.errors import SetupError
from kaiten.settings.environment import bento_models
from kaiten.settings.models import LoggingSettings
from lifecycle.store import ModelStore
from monitors.logging import setup

app = typer.Typer(
    help="Run fine-tuned transformers in production.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(serve.serve)
app.command()(models.register)
app.command(name="models")(models.list_models)
app.command()(models.sign)
app.command()(validate.validate)
app.command()(promotion.promote)
app.command()(promotion.rollback)
app.command()(promotion.history)
app.command()(promotion.diff)
app.command()(bento.build)
app.command()(bento.containerize)
app.command()(token.token)
app.add_typer(credentials.api_key, name="api-key")
app.command()(credentials.revoke)
app.command()(doctor.doctor)
app.command()(smoke.smoke)
app.add_typer(drift.drift, name="drift")
# Nobody calls it by hand.
app.command(hidden=True)(device.device)


def main() -> None:
    """Run the command; what the operator can mend is told in a sentence, without a traceback."""
    # Standard output is a command's own.
    setup.configure(LoggingSettings(level="warning"))
    # The trail's head goes to the log, whoever changes it.
    logging.getLogger("lifecycle.audit_log").setLevel(logging.INFO)
    try:
        if models := bento_models():
            ModelStore.at(models)
        app()
    except SetupError as error:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(f"[red]error:[/red] {escape(error.message)}")
        sys.exit(1)
