"""The `kaiten` command."""

import sys

import typer
from rich.console import Console
from rich.markup import escape

from kaiten.cli import device, doctor, models, serve, token
from kaiten.errors import SetupError

app = typer.Typer(
    help="Run fine-tuned transformers in production.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(serve.serve)
app.command()(models.register)
app.command(name="models")(models.list_models)
app.command()(token.token)
app.command()(doctor.doctor)
# Nobody calls it by hand.
app.command(hidden=True)(device.device)


def main() -> None:
    """Run the command; what the operator can mend is told in a sentence, without a traceback."""
    try:
        app()
    except SetupError as error:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(f"[red]error:[/red] {escape(error.message)}")
        sys.exit(1)
