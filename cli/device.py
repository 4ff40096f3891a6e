"""`kaiten device`: hold the models on one device, for the workers of a server."""

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import structlog
import typer

from kaiten.errors import NotReady, SetupError
from kaiten.settings.environment import metrics_directory
from kaiten.settings.loader import Settings, load_settings
from kaiten.settings.snapshot import release_snapshot
from lifecycle.environment import check_opset
from lifecycle.resolution import reference_in_force
from lifecycle.store import ModelStore
from monitors.logging import setup, writer
from monitors.metrics.definitions import Metrics
from runners.device_process.server import DeviceServer, carried
from runners.engines import choose_engine
from runners.runner import Runner
from runners.tasks import find_task

logger = structlog.get_logger("kaiten.device")


def device(
    socket: Annotated[Path, typer.Argument(help="Where to listen; made once all is warm.")],
    store: Annotated[Path, typer.Argument(help="The model store's folder.")],
) -> None:
    """Hold the models and answer a server's workers, until standard input ends.

    The service starts it where runners.process is device.
    Example: kaiten device /tmp/kaiten-abc/cpu.sock ~/bentoml/models
    """
    import uvloop  # noqa: PLC0415  there is none on Windows, where the other commands run

    keeper = _Keeper()
    settings = load_settings()
    release_snapshot()
    writer.detach_console()
    setup.configure(settings.logging)
    try:
        code = uvloop.run(
            _serve(settings, socket, ModelStore.at(store, settings.signatures), keeper)
        )
    except SetupError as error:
        # For whoever reads the server's log, a line like the others.
        logger.critical("device_process_failed", reason=error.message)
        code = 1
    # Threads that the device holds up would be waited for.
    _leave(code)


class _Keeper:
    """Whoever started this process, and is gone once its standard input ends."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gone = asyncio.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        if self._loop is None:
            # Nobody is served yet, and loading a model holds up all else.
            _leave(0)
        else:
            self._loop.call_soon_threadsafe(self._gone.set)

    async def until_gone(self) -> None:
        """Wait for its end; from now on it does not end this process by itself."""
        self._loop = asyncio.get_running_loop()
        await self._gone.wait()


async def _serve(settings: Settings, socket: Path, store: ModelStore, keeper: _Keeper) -> int:
    """Serve until nobody keeps this process and nobody asks it; return its exit code."""
    died = asyncio.Event()
    metrics = Metrics(metrics_directory())
    writer.report_drops_to(metrics.log_lines_dropped)
    runners = [_runner(tag, settings, store, metrics, died) for tag in settings.serving.models]
    server = DeviceServer(runners)
    try:
        listening = await server.listen(socket)
    except NotReady:
        return 1
    # The workers need it for what they hold, and end first; it leaves when they have.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    leaving = asyncio.create_task(keeper.until_gone())
    dying = asyncio.create_task(died.wait())
    await asyncio.wait([leaving, dying], return_when=asyncio.FIRST_COMPLETED)
    listening.close()
    if died.is_set():
        return 1
    await server.until_left()
    return 0


def _runner(
    tag: str, settings: Settings, store: ModelStore, metrics: Metrics, died: asyncio.Event
) -> Runner:
    model = store.get(tag)
    card, family = model.card, find_task(model.card.task)
    check_opset(card, choose_engine(model.folder, settings.runners).newest_opset)
    reference = reference_in_force(model, settings.serving.references)
    task = family.load(model.folder, card.max_length, settings.runners, reference)
    return Runner(
        tag,
        card.labels,
        carried(task.model, family.codec),
        settings.effective_batching,
        metrics.observer(tag),
        died.set,
    )


def _leave(code: int) -> None:
    writer.flush()
    os._exit(code)
