"""The `kaiten` command."""

import logging
import sys

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
    register,
    revoke,
    rollback,
    serve,
    smoke,
    token,
    validate,
)
from kaiten.errors import SetupError
from kaiten.settings.environment import bento_models
from kaiten.settings.models import LoggingSettings
from lifecycle.store import ModelStore
from monitors.logging.setup import configure_logging

app = typer.Typer(
    help="Run fine-tuned transformers in production.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(serve.serve)
app.command()(init.init)
app.command()(register.register)
app.command()(validate.validate)
app.command()(promote.promote)
app.command()(rollback.rollback)
app.add_typer(model.model, name="model")
app.command()(build.build)
app.command()(containerize.containerize)
app.add_typer(token.token, name="token")
app.add_typer(api_key.api_key, name="api-key")
app.command()(revoke.revoke)
app.command()(doctor.doctor)
app.add_typer(config.config, name="config")
app.command()(smoke.smoke)
app.add_typer(drift.drift, name="drift")
# Only the server calls it.
app.command(hidden=True)(device.device)


def main() -> None:
    """Run a command; an error that the operator can correct is printed without a traceback."""
    # Standard output carries a command's result, so only warnings are logged.
    configure_logging(LoggingSettings(level="warning"))
    # Except the audit log's head, which is logged at each change.
    logging.getLogger("lifecycle.audit_log").setLevel(logging.INFO)
    try:
        if models := bento_models():
            ModelStore.at(models)
        app()
    except SetupError as error:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(f"[red]error:[/red] {escape(error.message)}")
        sys.exit(1)
