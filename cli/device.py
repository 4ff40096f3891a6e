"""`kaiten device`: run the device process, which computes for the workers of a server."""

from pathlib import Path
from typing import Annotated

import typer

from server.device_process import run_device_process


def device(
    socket: Annotated[Path, typer.Argument(help="The socket to listen on, once models are warm.")],
    store: Annotated[Path, typer.Argument(help="The folder of the model store.")],
) -> None:
    """Hold the models and compute for a server's workers, until standard input ends.

    The service starts it if runners.process is device.
    Example: kaiten device /tmp/kaiten-abc/cpu.sock ~/bentoml/models
    """
    run_device_process(socket, store)
