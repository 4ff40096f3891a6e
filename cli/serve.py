"""`kaiten serve`: start the server on this machine, and say how to call it."""

import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console

from cli.local_server import HOST, Reach, names_in, reach
from gateway.auth.minting import mint
from gateway.auth.signing_secret import secret_in_force
from kaiten.errors import SetupError
from kaiten.loopback import proxy_bypass
from kaiten.settings.environment import ROOT, configuration_file, environment_for
from kaiten.settings.handover import remove_settings_variables
from kaiten.settings.loader import load_settings
from kaiten.settings.settings_yaml import check_bentoml_configuration
from monitors.logging import writer

_POLL_S = 0.2
console = Console(stderr=True, highlight=False, soft_wrap=True)


def serve(
    port: Annotated[int, typer.Option(help=f"The port on {HOST}.", min=1, max=65535)] = 3000,
    model: Annotated[
        str | None, typer.Option(help="name:version, in place of serving.models.")
    ] = None,
    client_certificate: Annotated[
        Path | None, typer.Option(help="What to show the server, with tls.client_ca; PEM.")
    ] = None,
    client_key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
) -> None:
    """Serve on 127.0.0.1 until Ctrl-C, and print a curl line that works.

    Example: kaiten serve --port 3001 --model support-intent:1.0.0
    """
    settings = load_settings()
    check_bentoml_configuration()
    overrides = {"BENTOML_CONFIG": configuration_file()}
    if model is not None:
        overrides["KAITEN_SERVING__MODELS"] = model
    reached = reach(settings.tls, port, client_certificate, client_key)
    secret = secret_in_force(settings)
    token = None
    if secret is not None:
        token = mint("local", ["predict"], timedelta(hours=1), settings.auth, secret.value)
    _check_free(port)
    command = [sys.executable, "-m", "bentoml", "serve", str(ROOT), "--host", HOST]
    server = subprocess.Popen(  # noqa: S603  our own command
        [*command, "--port", str(port)], env=environment_for(overrides)
    )
    # The server has them now; this process lives as long as it does, and needs none.
    remove_settings_variables()
    # A console that is not read must not keep a signal from the server.
    writer.detach_console()
    try:
        # Ctrl-C reaches the server as well; it answers what it holds, and we wait for it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: server.terminate())
        names = _wait_until_ready(server, reached)
        if names is not None:
            _greet(reached, names, token)
        code = server.wait()
    finally:
        server.terminate()
    if code < 0:
        raise SetupError(f"The server was ended by signal {-code}; a worker may still hold {port}.")
    raise typer.Exit(code)


def _check_free(port: int) -> None:
    """Raise SetupError if another server has the port: its readiness would pass for ours."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise SetupError(
                f"Port {port} can not be had: {error.strerror}. Stop what has it, or choose "
                "another: make serve PORT=3001, or kaiten serve --port 3001."
            ) from None


def _wait_until_ready(server: subprocess.Popen[bytes], reached: Reach) -> tuple[str, ...] | None:
    """Return the names in its certificate once the server is ready, None if it has ended.

    A large model may take long.
    """
    verify = reached.context if reached.certificate else True
    mounts = proxy_bypass(reached.url)
    client = httpx.Client(base_url=reached.url, verify=verify, timeout=1, mounts=mounts)
    with client, console.status("Starting ..."):
        while server.poll() is None:
            try:
                answer = client.get("/readyz")
                if answer.is_success:
                    return _names(answer)
            except httpx.TransportError:
                pass
            time.sleep(_POLL_S)
    return None


def _names(answer: httpx.Response) -> tuple[str, ...]:
    tls = answer.extensions["network_stream"].get_extra_info("ssl_object")
    return names_in(tls.getpeercert()) if tls else ()


def _greet(reached: Reach, names: tuple[str, ...], token: str | None) -> None:
    """Say how to call it; without a token where only others make them."""
    url = reached.url
    remark = "the token holds for an hour" if token else "with a token of auth.issuers as TOKEN"
    body = '{"text": "My parcel has not arrived yet, where is it?"}'
    console.print(
        f"\n[bold]Ready.[/bold] Try it ({remark}):\n\n"
        f"{reached.curl('/api/v1/predict', names)} -H 'Content-Type: application/json' "
        f'-H "Authorization: Bearer {token or "$TOKEN"}" '
        f"-d '{body}'\n\n"
        f"docs     {url}/docs\nmetrics  {url}/metrics\nhealth   {url}/health\n\n"
        "Stop with Ctrl-C.\n",
        markup=True,
    )
