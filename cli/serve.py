"""`kaiten serve`: start the server on this machine, and print how to call it."""

import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from cli.options import progress_console
from gateway.auth.minting import mint_token
from gateway.auth.signing_secret import secret_in_force
from kaiten.settings.loader import load_settings
from server.local_server import HOST, LocalEndpoint, LocalServer, local_endpoint
from server.terminal_log import LogLine, TerminalLog

_TOKEN_LIFETIME = timedelta(hours=1)
_LEVEL_STYLES = {"warning": "yellow", "error": "red", "critical": "bold red"}


def serve(
    port: Annotated[int, typer.Option(help=f"The port on {HOST}.", min=1, max=65535)] = 3000,
    model: Annotated[
        str | None, typer.Option(help="name:version or name@staging, instead of serving.models.")
    ] = None,
    client_certificate: Annotated[
        Path | None, typer.Option(help="The client certificate (PEM) to use with tls.client_ca.")
    ] = None,
    client_key: Annotated[Path | None, typer.Option(help="The key of that certificate.")] = None,
) -> None:
    """Serve on 127.0.0.1 until Ctrl-C, and print a curl command that works.

    In a terminal, the log is text, and the start shows only warnings; elsewhere it is JSON.
    Example: kaiten serve --port 3001 --model support-intent:1.0.0
    """
    settings = load_settings()
    endpoint = local_endpoint(settings.tls, port, client_certificate, client_key)
    token = None
    if secret_in_force(settings) is not None:
        token = mint_token(settings, "local", ["predict"], _TOKEN_LIFETIME)
    log = TerminalLog(_show) if sys.stderr.isatty() else None
    with LocalServer(endpoint, model, log.handle if log else None) as server:
        with progress_console.status("Starting ..."):
            names = server.wait_until_ready()
        if names is not None:
            if log is not None:
                log.end_start()
                _summarise(log, endpoint)
            _greet(endpoint, names, token)
        code = server.wait()
    raise typer.Exit(code)


def _show(line: LogLine) -> None:
    """Print a line of the log, above the spinner if there is one."""
    parts = [(line.time, "dim"), (line.level, _LEVEL_STYLES.get(line.level, "")), (line.text, "")]
    progress_console.print(Text("  ").join(Text(*part) for part in parts if part[0]))


def _summarise(log: TerminalLog, endpoint: LocalEndpoint) -> None:
    """Print what serves, how, and where."""
    table = Table.grid(padding=(0, 2))
    for name, value in _facts(log, endpoint):
        table.add_row(name, Text(value))
    progress_console.print("", table, sep="\n")


def _facts(log: TerminalLog, endpoint: LocalEndpoint) -> Iterator[tuple[str, str]]:
    for model_tag, engine in log.engines.items():
        yield "model", f"{model_tag}, {engine}"
    if log.workers is not None:
        yield "workers", str(log.workers)
    yield "address", endpoint.url


def _greet(endpoint: LocalEndpoint, names: tuple[str, ...], token: str | None) -> None:
    """Print how to call the server; without a token if only other issuers sign tokens."""
    url = endpoint.url
    remark = (
        "the token is valid for an hour" if token else "set TOKEN to a token of an auth.issuers"
    )
    body = '{"text": "My parcel has not arrived yet, where is it?"}'
    progress_console.print(
        f"\n[bold]Ready.[/bold] Try it ({remark}):\n\n"
        f"{endpoint.curl('/api/v1/predict', names)} -H 'Content-Type: application/json' "
        f'-H "Authorization: Bearer {token or "$TOKEN"}" '
        f"-d '{body}'\n\n"
        f"docs     {url}/docs\nmetrics  {url}/metrics\nhealth   {url}/health\n\n"
        "Stop with Ctrl-C.\n",
        markup=True,
    )
